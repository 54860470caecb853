"""Apache and PHP for tests: Debian's programs, with configurations of a test's own.

Apache hands all requests to a script, ``index.php``, through FastCGI.  Both need a directory
that the user ``www-data`` may look into, which that of a test is not.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssh_stage import SBIN

USER = "www-data"
APACHE = shutil.which("apache2", path=SBIN) or "apache2 (install Debian's package apache2)"
FPM = next(
    (path for each in SBIN.split(":") for path in map(str, sorted(Path(each).glob("php-fpm*")))),
    "php-fpm (install Debian's package php-fpm)",
)
_MODULES = ("mpm_{mpm}", "authz_core", "env", "proxy", "proxy_fcgi", "rewrite")
_LOAD = "LoadModule {0}_module /usr/lib/apache2/modules/mod_{0}.so"

_APACHE = """
ServerRoot {here}
ServerName site.test
DefaultRuntimeDir {here}
PidFile {here}/apache.pid
ErrorLog {here}/apache.log
CustomLog {here}/access.log "%m %U %>s"
User www-data
Group www-data
Listen {address}:{port}
{modules}
ServerLimit 32
{workers}
GracefulShutdownTimeout 5
KeepAlive On
KeepAliveTimeout 2
MaxKeepAliveRequests 0
DocumentRoot {root}
<Directory {root}>
    Require all granted
    <FilesMatch "\\.php$">
        SetHandler "proxy:unix:{here}/fpm.sock|fcgi://site"
    </FilesMatch>
</Directory>
{env}
RewriteEngine On
RewriteRule ^ /index.php [END]
"""

_WORKERS = {
    "event": "StartServers 2\nThreadsPerChild 8\nMaxRequestWorkers 128\n"
    "MinSpareThreads 16\nMaxSpareThreads 64",
    # It starts no others in the second after a restart.
    "prefork": "StartServers 16\nMaxRequestWorkers 32\nMinSpareServers 4\nMaxSpareServers 24",
}

_FPM = """
[global]
error_log = {here}/fpm.log
pid = {here}/fpm.pid
daemonize = no
[site]
user = www-data
group = www-data
listen = {here}/fpm.sock
listen.owner = www-data
listen.backlog = 512
pm = static
pm.max_children = 6
catch_workers_output = yes
php_admin_value[session.save_path] = {here}
"""


@dataclass(frozen=True)
class Website:
    """One Apache and one PHP; ``root`` is the directory of ``index.php``."""

    directory: Path  # for configurations, logs and sockets
    root: Path
    address: str
    port: int
    seen: Path  # ``directory``, as those see it who run it
    env: tuple[tuple[str, str], ...] = ()  # what the script finds in its $_SERVER

    def configure(self, mpm: str) -> None:
        """Write the configurations."""
        values = {
            "here": self.seen,
            "root": self.root,
            "address": self.address,
            "port": self.port,
            "workers": _WORKERS[mpm],
            "env": "\n".join(f"SetEnv {key} {value}" for key, value in self.env),
            "modules": "\n".join(_LOAD.format(each.format(mpm=mpm)) for each in _MODULES),
        }
        (self.directory / "apache.conf").write_text(_APACHE.format(**values))
        (self.directory / "fpm.conf").write_text(_FPM.format(**values))

    def apache(self, *more: str) -> Sequence[str]:
        """What runs Apache in the foreground, or with ``-k graceful`` tells it something."""
        return (APACHE, "-f", f"{self.seen}/apache.conf", *(more or ("-DFOREGROUND",)))

    @property
    def fpm(self) -> Sequence[str]:
        """What runs PHP in the foreground."""
        return (FPM, "--nodaemonize", "-n", "--fpm-config", f"{self.seen}/fpm.conf", *_EXTENSIONS)


# Without Debian's php.ini, and what that loads.
_EXTENSIONS = ("-dextension=mysqlnd", "-dextension=mysqli")
