"""What is mounted is told when it changes: real mounts, in a mount namespace of the test's own."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from conftest import LoggedFailures
from mount_stage import Namespace, namespace, needs_telling_kernel
from stage_waiting import PATIENCE, reactor, until
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from awesomeproxy.model import Outcome
from awesomeproxy.mountinfo import Mount, Mounting, MountState, Watchlist, states
from awesomeproxy.mounts import LOOK_EVERY, UNKNOWN, Mounts
from awesomeproxy.mounttable import TRIES, Alarm, read_table

RELEASED, REFUSED = Outcome.RELEASED, Outcome.REFUSED
QUIET = 0.3  # seconds in which nothing should happen


class Told:
    """What the watcher has told, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, bool]] = []

    def __call__(self, name: str, state: MountState) -> None:
        self.log.append((name, state.mounted))


@pytest.fixture
def place() -> Iterator[Namespace]:
    with namespace() as place:
        yield place


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def blog(tmp_path: Path) -> Path:
    path = tmp_path / "blog"
    path.mkdir()
    return path


@pytest.fixture
def mounts(place: Namespace, blog: Path, told: Told) -> Iterator[Mounts]:
    """Watches the filesystem ``blog``, once it is started."""
    mounts = Mounts(reactor, {"blog": Mounting(str(blog))}, told, place.table)
    yield mounts
    mounts.stop()


@contextmanager
def stopping(mounts: Mounts) -> Iterator[None]:
    """Stop it, whatever happens."""
    try:
        yield
    finally:
        mounts.stop()


async def wait(deferred: Deferred[Outcome]) -> Outcome:
    """The outcome, which must not be long in coming."""
    return await deferred.addTimeout(PATIENCE, reactor)


async def pause(seconds: float = QUIET) -> None:
    await deferLater(reactor, seconds)


def tmpfs(place: Namespace, path: Path, source: str = "tmpfs") -> None:
    place.run("mount", "-t", "tmpfs", "--", source, path)


class TestTelling:
    @pytest_twisted.ensureDeferred
    async def test_from_the_start_on(
        self, mounts: Mounts, place: Namespace, blog: Path, told: Told
    ) -> None:
        """The state is known when it has started, whether it is mounted or not."""
        assert mounts.state("blog") is UNKNOWN
        assert await wait(mounts.start()) is RELEASED
        assert mounts.state("blog").why == f"nothing is mounted on {blog}"
        assert told.log == [("blog", False)]
        mounts.stop()
        tmpfs(place, blog, "us")
        await wait(mounts.start())
        assert mounts.states() == {"blog": MountState(True, "us", "tmpfs")}
        assert repr(mounts) == "<Mounts: 1 of 1 mounted>"

    @pytest_twisted.ensureDeferred
    async def test_waiters_and_the_node(
        self, mounts: Mounts, place: Namespace, blog: Path, told: Told
    ) -> None:
        """Mounting and unmounting is told to all who wait, each for itself, and to the node."""
        await wait(mounts.start())
        first, second = mounts.on_mount.wait("blog"), mounts.on_mount.wait("blog")
        gone = mounts.on_unmount.wait("blog")
        tmpfs(place, blog)
        assert [await wait(first), await wait(second)] == [RELEASED, RELEASED]
        assert mounts.mounted("blog")
        assert not gone.called
        place.run("umount", blog)
        assert await wait(gone) is RELEASED
        assert not mounts.mounted("blog")
        assert told.log == [("blog", False), ("blog", True), ("blog", False)]
        assert len(mounts.on_mount) == len(mounts.on_unmount) == 0

    @pytest_twisted.ensureDeferred
    async def test_each_change_by_itself(
        self, mounts: Mounts, place: Namespace, blog: Path, told: Told
    ) -> None:
        """Of changes that come one after the other none is missed."""
        await wait(mounts.start())
        for _ in range(20):
            tmpfs(place, blog)
            await until(lambda: mounts.mounted("blog"), "the mount")
            place.run("umount", blog)
            await until(lambda: not mounts.mounted("blog"), "the end of the mount")
        assert told.log[1:] == [("blog", True), ("blog", False)] * 20

    @pytest_twisted.ensureDeferred
    async def test_a_name_that_is_not_watched(self, mounts: Mounts) -> None:
        """A stranger's name gets a refusal, and no place in the table."""
        await wait(mounts.start())
        assert await wait(mounts.on_mount.wait("stranger")) is REFUSED
        assert await wait(mounts.on_unmount.wait("stranger")) is REFUSED
        assert len(mounts.on_mount) == len(mounts.on_unmount) == 0
        with pytest.raises(KeyError):
            mounts.mounted("stranger")

    @pytest_twisted.ensureDeferred
    async def test_an_error_of_who_is_told(
        self, place: Namespace, blog: Path, logged_failures: LoggedFailures
    ) -> None:
        """It is logged, and reaches nobody else."""

        def fail(name: str, state: MountState) -> None:
            raise ZeroDivisionError

        mounts = Mounts(reactor, {"blog": Mounting(str(blog))}, fail, place.table)
        with stopping(mounts):
            await wait(mounts.start())
            waiting = mounts.on_mount.wait("blog")
            tmpfs(place, blog)
            assert await wait(waiting) is RELEASED
        assert len(logged_failures.flush(ZeroDivisionError)) == 2

    @pytest_twisted.ensureDeferred
    async def test_stopped_by_who_is_told(self, place: Namespace, tmp_path: Path) -> None:
        """Nothing is told once it is stopped, and who waits is refused."""
        told: list[str] = []

        def stop(name: str, state: MountState) -> None:
            told.append(name)
            watcher.stop()

        names = {name: Mounting(str(tmp_path / name)) for name in ("a", "b")}
        watcher = Mounts(reactor, names, stop, place.table)
        waiting = watcher.on_mount.wait("b")
        assert await wait(watcher.start()) is REFUSED
        assert await wait(waiting) is REFUSED
        await pause()
        assert len(told) == 1

    @pytest_twisted.ensureDeferred
    async def test_another_set_by_who_is_told(
        self, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """Who starts it is told when the last set is known, not before."""
        new = {"new": Mounting(str(blog))}

        def change(name: str, state: MountState) -> None:
            if name == "old":
                watcher.watch(new)

        watcher = Mounts(reactor, {"old": Mounting(str(tmp_path))}, change, place.table)
        tmpfs(place, blog)
        with stopping(watcher):
            await wait(watcher.start())
            assert watcher.mounted("new")


class TestWatching:
    @pytest_twisted.ensureDeferred
    async def test_another_set(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path, told: Told
    ) -> None:
        """What stays is undisturbed, what is new is looked at, who waits for what goes is told."""
        shop = tmp_path / "shop"
        shop.mkdir()
        tmpfs(place, shop)
        tmpfs(place, blog)
        await wait(mounts.start())
        kept = {"blog": Mounting(str(blog))}
        staying = mounts.on_unmount.wait("blog")
        assert await wait(mounts.watch(kept | {"shop": Mounting(str(shop))})) is RELEASED
        assert mounts.mounted("shop")
        assert told.log == [("blog", True), ("shop", True)]
        going = mounts.on_unmount.wait("shop")
        watching = mounts.watch(kept)
        assert await wait(going) is REFUSED
        await wait(watching)
        assert list(mounts.states()) == ["blog"]
        assert told.log == [("blog", True), ("shop", True)]
        place.run("umount", blog)
        assert await wait(staying) is RELEASED

    @pytest_twisted.ensureDeferred
    async def test_the_same_name_elsewhere(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path, told: Told
    ) -> None:
        """What is now something else is not mounted until it has been looked at."""
        tmpfs(place, blog)
        await wait(mounts.start())
        gone = mounts.on_unmount.wait("blog")
        watching = mounts.watch({"blog": Mounting(str(tmp_path / "new"))})
        assert not mounts.mounted("blog")
        await wait(watching)
        assert await wait(gone) is RELEASED
        assert told.log == [("blog", True), ("blog", False)]

    @pytest_twisted.ensureDeferred
    async def test_changed_again_and_again(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """Whichever set comes last counts, also while the table is read for an earlier one."""
        tmpfs(place, blog)
        starting = mounts.start()
        for number in range(5):
            mounts.watch({f"other{number}": Mounting(str(tmp_path))})
        last = mounts.watch({"last": Mounting(str(blog))})
        assert [await wait(starting), await wait(last)] == [RELEASED, RELEASED]
        assert mounts.states() == {"last": MountState(True, "tmpfs", "tmpfs")}

    @pytest_twisted.ensureDeferred
    async def test_not_watched_any_more(self, mounts: Mounts, place: Namespace, blog: Path) -> None:
        """After a stop nothing is read, and who waits has been refused."""
        await wait(mounts.start())
        waiting = mounts.on_mount.wait("blog")
        mounts.stop()
        assert await wait(waiting) is REFUSED
        readings = mounts.readings
        tmpfs(place, blog)
        await pause()
        assert mounts.readings == readings
        assert not mounts.mounted("blog")

    @pytest_twisted.ensureDeferred
    async def test_stopped_while_it_reads(self, mounts: Mounts) -> None:
        """The reading that is under way is dropped; a start after that is as the first."""
        starting = mounts.start()
        mounts.stop()
        assert await wait(starting) is REFUSED
        assert mounts.state("blog") is UNKNOWN
        assert await wait(mounts.start()) is RELEASED


class TestKinds:
    """What there is to mount, as the kernel shows it."""

    @pytest_twisted.ensureDeferred
    async def test_bind_mounts(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """A bind mount of a directory is one, and is not all of what it is from."""
        data = tmp_path / "data"
        data.mkdir()
        tmpfs(place, data, "data")
        place.run("mkdir", data / "sub")
        await wait(mounts.start())
        place.run("mount", "--bind", data / "sub", blog)
        await until(lambda: mounts.mounted("blog"))
        await wait(mounts.watch({"blog": Mounting(str(blog), "data")}))
        assert mounts.state("blog").why == f"/sub of data is mounted on {blog}, not /"
        await wait(mounts.watch({"blog": Mounting(str(blog), "data", "/sub")}))
        assert mounts.mounted("blog")
        place.run("umount", blog)
        place.run("mount", "--bind", data, blog)
        await wait(mounts.watch({"blog": Mounting(str(blog), "data")}))
        assert mounts.mounted("blog")

    @pytest_twisted.ensureDeferred
    async def test_read_only(
        self, mounts: Mounts, place: Namespace, blog: Path, told: Told
    ) -> None:
        """It is told when a mount becomes read-only, and when it is no more."""
        tmpfs(place, blog)
        await wait(mounts.start())
        for options, read_only in [("remount,ro", True), ("remount,rw", False)]:
            place.run("mount", "-o", options, blog)
            await until(lambda now=read_only: mounts.state("blog").read_only is now, options)  # type: ignore[misc]
            assert mounts.mounted("blog")
        place.run("mount", "-o", "remount,bind,ro", blog)
        await until(lambda: mounts.state("blog").read_only)
        assert told.log == [("blog", True)] * 4

    @pytest_twisted.ensureDeferred
    async def test_an_overlay(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """An overlay over the path itself is what is mounted there."""
        upper = tmp_path / "upper"
        upper.mkdir()
        tmpfs(place, upper)
        place.run("mkdir", upper / "up", upper / "work")
        await wait(mounts.start())
        options = f"lowerdir={blog},upperdir={upper}/up,workdir={upper}/work"
        place.run("mount", "-t", "overlay", "-o", options, "layers", blog)
        await until(lambda: mounts.mounted("blog"))
        assert mounts.state("blog") == MountState(True, "layers", "overlay")

    @pytest_twisted.ensureDeferred
    async def test_a_filesystem_on_a_device(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """The source of a filesystem on a block device is that device."""
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(4 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        await wait(mounts.start())
        place.run("mount", "-o", "loop", image, blog)
        await until(lambda: mounts.mounted("blog"))
        assert mounts.state("blog").source.startswith("/dev/loop")
        assert mounts.state("blog").fstype == "ext4"
        place.run("umount", blog)
        await until(lambda: not mounts.mounted("blog"))

    @pytest_twisted.ensureDeferred
    async def test_hidden(self, mounts: Mounts, place: Namespace, blog: Path) -> None:
        """What is mounted over a directory above hides it, until that is unmounted."""
        tmpfs(place, blog)
        await wait(mounts.start())
        gone, back = mounts.on_unmount.wait("blog"), mounts.on_mount.wait("blog")
        tmpfs(place, blog.parent, "lid")
        assert await wait(gone) is RELEASED
        assert mounts.state("blog").why == (
            f"what is mounted on {blog} is hidden by lid, mounted over it on {blog.parent}"
        )
        place.run("umount", blog.parent)
        assert await wait(back) is RELEASED

    @pytest_twisted.ensureDeferred
    async def test_stacked(self, mounts: Mounts, place: Namespace, blog: Path) -> None:
        """The one on top is what is there."""
        mounts.watch({"blog": Mounting(str(blog), "ours")})
        tmpfs(place, blog, "ours")
        await wait(mounts.start())
        tmpfs(place, blog, "other")
        await until(lambda: not mounts.mounted("blog"))
        assert mounts.state("blog").why == f"other is mounted on {blog}, not ours"
        place.run("umount", blog)
        await until(lambda: mounts.mounted("blog"))

    @pytest_twisted.ensureDeferred
    async def test_moved(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """A mount may come from elsewhere, and go there."""
        other = tmp_path / "other"
        other.mkdir()
        tmpfs(place, other)
        await wait(mounts.start())
        place.run("mount", "--move", other, blog)
        await until(lambda: mounts.mounted("blog"))
        place.run("mount", "--move", blog, other)
        await until(lambda: not mounts.mounted("blog"))

    @pytest_twisted.ensureDeferred
    async def test_unmounted_lazily(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """It is not mounted any more, though somebody still writes to it."""
        tmpfs(place, blog)
        await wait(mounts.start())
        script = 'exec 3>"$1/file"; echo >"$2"; read go; echo late >&3'
        writing = subprocess.Popen(
            place.command("sh", "-euc", script, "sh", blog, tmp_path / "open"),
            stdin=subprocess.PIPE,
        )
        await until((tmp_path / "open").exists)
        place.run("umount", "-l", blog)
        await until(lambda: not mounts.mounted("blog"))
        writing.communicate(b"go\n", timeout=10)
        assert writing.returncode == 0

    @pytest_twisted.ensureDeferred
    async def test_odd_names(self, place: Namespace, tmp_path: Path) -> None:
        """Any name that a directory can have can be watched."""
        names = ["-a b", "tab\there", "line\nend", "back\\slash", "#", "\r", "ü", "\udcff", "\\040"]
        mounts = Mounts(
            reactor,
            {name: Mounting(str(tmp_path / name), f"{name} of us") for name in names},
            table=place.table,
        )
        with stopping(mounts):
            await wait(mounts.start())
            for name in names:
                (tmp_path / name).mkdir()
                tmpfs(place, tmp_path / name, f"{name} of us")
            await until(lambda: all(state.mounted for state in mounts.states().values()))

    @pytest_twisted.ensureDeferred
    async def test_another_namespace(self, mounts: Mounts, place: Namespace, blog: Path) -> None:
        """What is mounted elsewhere, and is not propagated, is not mounted here."""
        await wait(mounts.start())
        with namespace() as other:
            tmpfs(other, blog)
            await pause()
            assert not mounts.mounted("blog")


class TestHaste:
    """Many changes are not missed, and cost no more than they have to."""

    CYCLES = 500

    @pytest_twisted.ensureDeferred
    async def test_500_cycles(self, mounts: Mounts, place: Namespace, blog: Path) -> None:
        """However fast mounts come and go, the last state is the one that is told."""
        await wait(mounts.start())
        script = (  # once in some thousand times the watcher is at the path: busy
            'u() { umount "$1" || umount "$1"; };'
            'n=0; while [ $n -lt $2 ]; do mount -t tmpfs t "$1"; u "$1"; n=$((n+1)); done;'
            'mount -t tmpfs last "$1"'
        )
        churning = place.start(script, blog, str(self.CYCLES))
        await until(lambda: churning.poll() is not None, "the end of the script")
        assert churning.returncode == 0
        await until(lambda: mounts.state("blog").source == "last", "the last mount")
        # One look for each of the changes at the most, and one at the start.
        assert mounts.looks <= 2 * self.CYCLES + 2
        await pause()
        looks = mounts.looks
        await pause()
        assert mounts.looks == looks

    @pytest_twisted.ensureDeferred
    async def test_what_others_mount(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path, told: Told
    ) -> None:
        """Mounts that are not watched are read, and not told; those that are come through."""
        await wait(mounts.start())
        other = tmp_path / "other"
        other.mkdir()
        script = 'while [ ! -e "$2" ]; do mount -t tmpfs t "$1"; umount "$1"; done'
        churning = place.start(script, other, tmp_path / "enough")
        try:
            for _ in range(10):
                tmpfs(place, blog)
                await until(lambda: mounts.mounted("blog"))
                place.run("umount", blog)
                await until(lambda: not mounts.mounted("blog"))
        finally:
            (tmp_path / "enough").touch()
            churning.wait(20)
        assert churning.returncode == 0
        assert told.log[1:] == [("blog", True), ("blog", False)] * 10

    @pytest_twisted.ensureDeferred
    async def test_nothing_is_done_while_nothing_happens(
        self, mounts: Mounts, place: Namespace, blog: Path
    ) -> None:
        """One change makes for one look, and rest for none."""
        await wait(mounts.start())
        await pause()
        assert mounts.looks == 1
        tmpfs(place, blog)
        await until(lambda: mounts.mounted("blog"))
        await pause()
        # mount(8) of newer systems makes several changes of one mount.
        assert 2 <= mounts.looks <= 5


class TestSparing:
    """The table is read only if a look at the paths does not tell."""

    @needs_telling_kernel
    @pytest_twisted.ensureDeferred
    async def test_what_others_mount(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """Other mounts do not have it read, whether anything is mounted on the path or not."""
        other = tmp_path / "other"
        other.mkdir()
        await wait(mounts.start())
        assert mounts.readings == 1
        for mounted in (False, True):
            for command in (("mount", "-t", "tmpfs", "other", other), ("umount", other)):
                looks = mounts.looks
                place.run(*command)
                await until(lambda looks=looks: mounts.looks > looks)  # type: ignore[misc]
            if not mounted:
                tmpfs(place, blog)
                await until(lambda: mounts.mounted("blog"))
        await pause()
        assert mounts.readings == 1

    @needs_telling_kernel
    @pytest_twisted.ensureDeferred
    async def test_what_is_watched(self, mounts: Mounts, place: Namespace, blog: Path) -> None:
        """That nothing is hidden has to be read once; after that it is known."""
        tmpfs(place, blog)
        await wait(mounts.start())
        assert mounts.readings == 0
        for _ in range(20):
            place.run("umount", blog)
            await until(lambda: not mounts.mounted("blog"))
            tmpfs(place, blog)
            await until(lambda: mounts.mounted("blog"))
        # Not quite one: what changes while it is looked at cannot be told by the look.
        assert 1 <= mounts.readings < 10

    @pytest_twisted.ensureDeferred
    async def test_another_path(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """What is known of a path is not taken for what is known of another."""
        hidden = tmp_path / "above" / "hidden"
        hidden.mkdir(parents=True)
        tmpfs(place, hidden)
        tmpfs(place, hidden.parent, "lid")
        place.run("mkdir", hidden.parent / "blog")
        mounts.watch({"blog": Mounting(str(hidden.parent / "blog"))})
        await wait(mounts.start())
        await wait(mounts.watch({"blog": Mounting(str(hidden))}))
        assert "hidden by lid" in mounts.state("blog").why

    @pytest_twisted.ensureDeferred
    async def test_hidden_as_soon_as_mounted(
        self, mounts: Mounts, place: Namespace, blog: Path
    ) -> None:
        """That the path is hidden is told, though nothing was or is to be seen on it."""
        await wait(mounts.start())
        script = 'mount -t tmpfs t "$1"; mount -t tmpfs lid "$2"; mount -t tmpfs lid2 "$2"'
        assert place.start(script, blog, blog.parent).wait(20) == 0
        await until(lambda: "hidden by lid2" in mounts.state("blog").why)

    @pytest_twisted.ensureDeferred
    async def test_over_the_root(self, mounts: Mounts, place: Namespace, blog: Path) -> None:
        """What is mounted over the root hides all, as in the table."""
        tmpfs(place, blog)
        await wait(mounts.start())
        place.run("mount", "--bind", "/", "/")
        await until(lambda: not mounts.mounted("blog"))
        tmpfs(place, blog, "again")
        await until(lambda: mounts.state("blog").source == "again")

    @pytest_twisted.ensureDeferred
    async def test_through_a_symbolic_link(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """A path that leads through one has nothing mounted on it, be it taken away or not."""
        link = tmp_path / "link"
        link.symlink_to(blog)
        names = {"link": Mounting(str(link)), "beneath": Mounting(str(link / "deep"))}
        mounts.watch(names)
        await wait(mounts.start())
        tmpfs(place, blog)
        place.run("mkdir", blog / "deep")
        tmpfs(place, blog / "deep")
        await pause()
        assert not any(state.mounted for state in mounts.states().values())
        link.unlink()
        link.mkdir()
        place.run("mount", "--move", blog, link)
        await until(lambda: all(state.mounted for state in mounts.states().values()))

    @pytest_twisted.ensureDeferred
    async def test_a_dead_server(
        self, mounts: Mounts, place: Namespace, blog: Path, tmp_path: Path
    ) -> None:
        """Neither a filesystem that does not answer nor a path in it makes it wait."""
        mounts.watch({"blog": Mounting(str(blog)), "beneath": Mounting(str(blog / "deep"))})
        await wait(mounts.start())
        server = os.open("/dev/fuse", os.O_RDWR)
        try:
            options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
            command = place.command("mount", "-i", "-t", "fuse", "-o", options, "dead", blog)
            subprocess.run(command, check=True, pass_fds=[server])
            await until(lambda: mounts.mounted("blog"))
            tmpfs(place, blog, "above")
            await until(lambda: mounts.state("blog").source == "above")
            place.run("umount", blog)
            await until(lambda: mounts.state("blog").source == "dead")
        finally:
            os.close(server)

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("seeing", [True, False])
    async def test_as_in_the_table(
        self, place: Namespace, tmp_path: Path, seed: int, seeing: bool
    ) -> None:
        """After any changes, however quick, it is told what the table says, be it read or not."""
        chance = random.Random(seed)
        names = ["a", "a/b", "a/b/c", "d", "d/b", "none", "none/b"]
        watched = {name: Mounting(str(tmp_path / "top" / name)) for name in names}
        watched |= {f"{n} of t1": Mounting(str(tmp_path / "top" / n), "t1") for n in names}
        table = tmp_path / "table"  # in no process's directory, so only the table can tell
        table.symlink_to(place.table)
        mounts = Mounts(reactor, watched, table=place.table if seeing else str(table))
        (tmp_path / "top").mkdir()
        shell = subprocess.Popen(
            place.command("sh", "-c", 'cd "$1"; exec sh', "sh", tmp_path / "top"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert shell.stdin is not None
        assert shell.stdout is not None
        with stopping(mounts), shell:
            await wait(mounts.start())
            shell.stdin.write(b"mkdir -p a/b/c d/b e x; mount -t tmpfs t0 e; mkdir -p e/b/c\n")
            for _ in range(100):
                for _ in range(chance.choice((1, 1, 2, 8))):
                    shell.stdin.write(self._change(chance).encode())
                shell.stdin.write(b"echo\n")
                shell.stdin.flush()
                shell.stdout.readline()
                await until(
                    lambda: mounts.states() == states(Path(place.table).read_bytes(), watched)
                )
            shell.stdin.close()
        assert mounts.looks > 2

    @staticmethod
    def _change(chance: random.Random) -> str:
        """A line of a shell's script that changes something, if it can."""
        top = "$PWD/"
        one, other = (top + chance.choice(("a", "a/b", "a/b/c", "d", "d/b", "e")) for _ in "12")
        return chance.choice((
            f"mkdir -p {one}/b/c; mount -t tmpfs t{chance.randrange(3)} {one}; mkdir -p {one}/b/c",
            f"mount --bind {one} {other}",
            f"mount --rbind {one} {other}",
            f"mount --move {one} {other}",
            f"umount {one}",
            f"umount -l {one}",
            f"umount -R {one}",
            f"umount -R {top}a; umount -R {top}d",
            f"mount -t tmpfs x {top}x",
            f"umount {top}x",
            f"mount -o remount,ro {one}",
            f"mount -o remount,rw {one}",
            f"mount -o remount,bind,ro {one}",
            f"mount -o remount,bind,rw {one}",
            f"mv {top}d {top}f && mv {top}f {top}d",
            f"mkdir -p {top}none/b; mount -t tmpfs t1 {top}none/b",
            f"umount -R {top}none/b; rm -r {top}none",
        )) + "\n"  # fmt: skip


class Meddling(Watchlist):
    """Has something changed as soon as a reading has begun, in so many readings."""

    def __init__(self, path: Path, change: Callable[[], None], times: int) -> None:
        super().__init__({"blog": Mounting(str(path))})
        self._change = change
        self._times = times
        self._first = b""
        self.readings = 0

    def sift(self, lines: Iterable[bytes]) -> list[Mount]:
        lines = list(lines)
        self._first = self._first or lines[0]
        if lines[0] == self._first:
            self.readings += 1
            if self.readings <= self._times:
                self._change()
        return super().sift(lines)


class TestTables:
    def test_a_table_that_changes_while_it_is_read(self, place: Namespace, blog: Path) -> None:
        """What was read of it does not count: it is read again."""
        tmpfs(place, blog)
        meddling = Meddling(blog, lambda: place.run("umount", blog), 1)
        assert not meddling.states(read_table(place.table, meddling))["blog"].mounted
        assert meddling.readings == 2

    def test_a_table_that_changes_all_the_time(self, place: Namespace, blog: Path) -> None:
        """There is an end to that."""
        meddling = Meddling(blog, lambda: tmpfs(place, blog), 100)
        read_table(place.table, meddling)
        assert meddling.readings == TRIES

    @pytest_twisted.ensureDeferred
    async def test_the_end_of_the_reactor(self, mounts: Mounts) -> None:
        """The reactor lets go of all it watches before the watcher is stopped, or after."""
        await wait(mounts.start())
        (alarm,) = (reader for reader in reactor.getReaders() if isinstance(reader, Alarm))
        reactor.removeReader(alarm)
        reason = Failure(ConnectionLost())  # type: ignore[no-untyped-call]
        alarm.connectionLost(reason)
        assert alarm.fileno() == -1
        mounts.stop()

    @pytest_twisted.ensureDeferred
    async def test_this_process(self, tmp_path: Path) -> None:
        """Without further words it is the table of this process."""
        path = tmp_path / "here"
        path.mkdir()
        mounts = Mounts(reactor, {"here": Mounting(str(path))})
        with stopping(mounts):
            await wait(mounts.start())
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
            try:
                await until(lambda: mounts.mounted("here"))
            finally:
                subprocess.run(["umount", path], check=True)
            await until(lambda: not mounts.mounted("here"))

    @pytest_twisted.ensureDeferred
    async def test_a_table_that_cannot_be_read(
        self, place: Namespace, blog: Path, tmp_path: Path, logged_failures: LoggedFailures
    ) -> None:
        """What was known stays; it is tried again, and then told."""
        table = tmp_path / "table"
        table.symlink_to(place.table)
        mounts = Mounts(reactor, {"blog": Mounting(str(blog))}, table=str(table))
        tmpfs(place, blog)
        with stopping(mounts):
            await wait(mounts.start())
            table.unlink()
            place.run("umount", blog)
            await pause()
            assert mounts.mounted("blog")
            table.symlink_to(place.table)
            await until(lambda: not mounts.mounted("blog"))

    @pytest_twisted.ensureDeferred
    async def test_without_a_table(self, tmp_path: Path) -> None:
        """The paths are looked at, from time to time; a source cannot be told then."""
        names: Mapping[str, Mounting] = {
            "proc": Mounting("/proc"),
            "plain": Mounting(str(tmp_path)),
            "sourced": Mounting("/proc", "proc"),
        }
        mounts = Mounts(reactor, names, table=str(tmp_path / "none"))
        with stopping(mounts):
            await wait(mounts.start())
            assert [name for name in names if mounts.mounted(name)] == ["proc"]
            assert mounts.state("sourced").why == (
                "whether it is proc that is mounted on /proc cannot be told here"
            )
            (look,) = (call for call in reactor.getDelayedCalls() if "LoopingCall" in str(call))
            assert 0 < look.getTime() - reactor.seconds() <= LOOK_EVERY
            look.reset(0)
            await until(lambda: mounts.looks > 1)
