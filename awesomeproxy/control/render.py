"""What the daemon answers, for people: tables and short lines.

Every function takes an answer's JSON and a :class:`Style`, and gives text
without a newline at its end.  Nothing is printed here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from awesomeproxy.control import nodetext
from awesomeproxy.control.text import Style, clean, duration, listed, pairs, size, table

Json = Mapping[str, Any]

_CHECKED = ("sites", "databases", "filesystems", "listeners")
_COLUMNS = (
    "SITE",
    "STATE",
    "BACKEND",
    "GEN",
    "IN FLIGHT",
    "HELD",
    "REQUESTS",
    "FAILED",
    "SERVERS",
)
_HISTORY = (
    "BEGAN",
    "SITE",
    "FROM",
    "TO",
    "WITH",
    "STATE",
    "PAUSE",
    "WAIT",
    "HELD",
    "FAILED",
    "AMBIGUOUS",
    "REASON",
)
_DATABASES = ("DATABASE", "STATE", "BACKEND", "GEN", "CONNECTIONS", "HELD", "LISTENS", "TROUBLE")
_FILESYSTEMS = ("FILESYSTEM", "STATE", "NODE", "GEN", "MOVER", "TROUBLE")
_CERTIFICATES = ("NAMES", "EXPIRES", "SOURCE", "PROBLEM")
_ISSUED = ("SITE", "STATE", "NEXT LOOK", "ERROR")
_RELOADED = {
    "added": "added",
    "changed": "changed",
    "removed": "removed",
    "opened": "listening on",
    "closed": "no longer listening on",
    "relistened": "other settings for",
    "certificates": "other certificates in",
    "keys": "changed keys",
    "restart": "only a restart changes",
}
_OUTCOMES = ("held", "released", "departed", "refused", "retried", "ambiguous", "failed")


def status(result: Json, style: Style) -> str:
    """The node's line, the table of its sites, and what is the matter with them."""
    node = result.get("node", {})
    sites = result.get("sites", [])
    lines = [node_line(node)]
    if cluster := result.get("cluster"):
        lines += nodetext.summary(cluster, style)
    lines += _certificate_warnings(node.get("certificates", {}), style)
    if not sites:
        return "\n".join([*lines, "no sites; add one with `awesomeproxy site add`"])
    rows = [
        (
            site["name"],
            site["state"],
            site["backend"],
            site["generation"],
            site["in_flight"],
            site["held"],
            site["counters"]["requests"],
            site["counters"]["failed"],
            _servers(site),
        )
        for site in sites
    ]
    counts = ("REQUESTS", "FAILED")
    here = " HERE" if result.get("counted") == "here" else ""
    columns = [name + here if name in counts else name for name in _COLUMNS]
    numbers = ("GEN", "IN FLIGHT", "HELD", *(name + here for name in counts))
    lines += ["", table(columns, rows, style, right=numbers, states=["STATE"])]
    if databases := result.get("databases"):
        lines += ["", _databases(databases, style)]
    if filesystems := result.get("filesystems"):
        lines += ["", _filesystems(filesystems, style)]
    troubles = [(site["name"], trouble) for site in sites for trouble in _troubles(site)]
    if troubles:
        lines += ["", *(style.paint(clean(f"{name}: {why}"), "yellow") for name, why in troubles)]
    return "\n".join(lines)


def _databases(databases: list[Json], style: Style) -> str:
    keys = ("name", "state", "backend", "generation", "connections", "held", "endpoint", "trouble")
    rows = [[each[key] for key in keys] for each in databases]
    numbers = ("GEN", "CONNECTIONS", "HELD")
    return table(_DATABASES, rows, style, right=numbers, states=["STATE"])


def _filesystems(filesystems: list[Json], style: Style) -> str:
    keys = ("name", "state", "node", "generation", "mover", "trouble")
    rows = [[each[key] for key in keys] for each in filesystems]
    return table(_FILESYSTEMS, rows, style, right=["GEN"], states=["STATE"])


def mounted(result: Json, style: Style) -> str:
    """Where a filesystem is, and which sites are served from there."""
    sites = ", ".join(map(clean, result.get("sites", []))) or "no site"
    return (
        f"{clean(result['filesystem'])}: {style.state(clean(result['state']))} on"
        f" {clean(result['node'])} at generation {result['generation']}; {sites} lives there"
    )


def aborted(result: Json, style: Style) -> str:
    """What has become of a migration that was called off."""
    return clean(f"{result['site']}: {result['was']} was called off; it is on {result['backend']}")


def node_line(node: Json) -> str:
    """Who answers, for how long it has run, and what it carries."""
    there, most = node.get("connections", 0), node.get("max_connections", 0)
    turned_away = f" and {there - most} turned away" if there > most else ""
    return clean(
        f"{node.get('name', '?')}: awesomeproxy {node.get('version', '?')}, "
        f"pid {node.get('pid', '?')}, up {duration(node.get('uptime', 0))}, "
        f"{min(there, most)} of {most} connections{turned_away}, "
        f"{node.get('held', 0)} held, listening on {', '.join(node.get('listen', [])) or 'nothing'}"
        f", registry {node.get('registry', '?')}"
    )


def site_details(result: Json, style: Style) -> str:
    """The answer about one site, in detail."""
    return "\n\n".join(_site(site, style) for site in result.get("sites", []))


def check(result: Json, style: Style) -> str:
    """What is wrong with a configuration file, a line each; or that nothing is, and what is odd."""
    if result["problems"]:
        return "\n".join(map(clean, result["problems"]))
    numbers = {what: result[what] for what in _CHECKED if result[what]}
    counts = (f"{count} {what[: -1 if count == 1 else None]}" for what, count in numbers.items())
    lines = [style.paint(clean(warning), "yellow") for warning in result["warnings"]]
    told = {0: "fine", 1: "fine, with a warning"}.get(len(lines), "fine, with warnings")
    return "\n".join([clean(f"{result['file']}: {told}: {', '.join(counts)}"), *lines])


def _site(site: Json, style: Style) -> str:
    name, state = clean(site["name"]), site["state"]
    expires = site.get("expires")
    asked = ", ".join(
        host + (site["path"] if site["path"] != "/" else "") for host in site["hosts"]
    )
    move = site.get("migration")
    about = pairs(
        [
            ("asked for as", asked),
            ("backend", site["backend"]),
            ("generation", f"{site['generation']} by {site['by']}"),
            ("hold ends", f"in {duration(max(0.0, expires - time.time()))}" if expires else ""),
            ("migration", f"to {move['target']}, at {move['step']}" if move else ""),
            ("in flight", f"{site['in_flight']}, and {site['tunnels']} tunnels"),
            ("held", f"{site['held']} requests, {site['held_bytes']} bytes"),
            ("connections", f"{site['connections']} to its servers"),
            ("counted", _counted(site["counters"])),
            ("trouble", site.get("trouble")),
            ("warning", "; ".join(site.get("warnings", []))),
        ]
    )
    rows = [
        (backend + (" *" if backend == site["backend"] else ""), url, health)
        for backend, servers in site["backends"].items()
        for url, health in servers.items()
    ]
    parts = [f"{style.paint(name, 'bold')}: {style.state(clean(state))}\n{about}"]
    if len(nodes := site.get("nodes", {})) > 1:
        parts.append(nodetext.on_each(nodes, style))
    parts.append(table(("BACKEND", "SERVER", "HEALTH"), rows, style, states=["HEALTH"]))
    return "\n\n".join(parts)


def receipt(result: Json, style: Style) -> str:
    """What a pause has reached."""
    closed = f"; {result['closed']} cut" if result.get("closed") else ""
    lines = [
        f"{clean(result['site'])}: {style.state('holding')} on {clean(result['backend'])} "
        f"at generation {result['generation']}; drained in {duration(result['drained_in'])}{closed}"
    ]
    lines += [
        clean(
            f"  {report['node']} {report['worker']}: {report['in_flight']} in flight, "
            f"{report['connections']} connections, {report['held']} held"
        )
        for report in result.get("workers", [])
    ]
    return "\n".join(lines)


def resumed(result: Json, style: Style) -> str:
    """What a resume has let go."""
    return (
        f"{clean(result['site'])}: {style.state('open')} on {clean(result['backend'])} at "
        f"generation {result['generation']}; {result.get('released', 0)} requests released"
    )


def migration(result: Json, style: Style) -> str:
    """A plan, or the ledger of what was done."""
    return plan(result, style) if "plan" in result else ledger(result, style)


def plan(result: Json, style: Style) -> str:
    """What a migration would do, and what is in its way."""
    lines = [f"{clean(result['site'])}: {clean(result['source'])} -> {clean(result['target'])}"]
    lines += [
        f"  {number}. {clean(step['step'])}: {clean(step['what'])}"
        for number, step in enumerate(result["plan"], 1)
    ]
    along = [m for m in result.get("along", []) if m["source"] != m["target"]]
    lines += [
        f"  along: {clean(m['name'])}: {clean(m['source'])} -> {clean(m['target'])}" for m in along
    ]
    held = [clean(m["name"]) for m in result.get("along", []) if m["source"] == m["target"]]
    if held:
        lines.append(f"  held meanwhile: {', '.join(held)}")
    if result.get("estimate"):
        whole, pending = result["estimate"]["whole"], result["estimate"]["pending"]
        lines.append(f"  data: {size(whole)}, of which {size(pending)} have to be carried")
    if pause := result.get("pause"):
        lines.append(f"  pause: {_foreseen(pause)}")
    problems = result.get("problems", [])
    lines += [style.paint(f"  problem: {clean(problem)}", "red") for problem in problems]
    lines.append("it would not be begun" if problems else "nothing was done: this was a dry run")
    return "\n".join(lines)


def _foreseen(pause: Json) -> str:
    most = f"undone if it takes {duration(pause['at_most'])}"
    if pause["predicted"] is None:
        return f"not known before it begins, as it would be the first such move; {most}"
    last = duration(pause["predicted"])
    return f"about {last}, which the last such move took (migration {pause['migration']}); {most}"


def ledger(result: Json, style: Style) -> str:
    """What a migration did to the site's requests, and how long each step took."""
    reason = f": {clean(result['reason'])}" if result.get("reason") else ""
    first = (
        f"{clean(result['site'])}: {clean(result['source'])} -> {clean(result['target'])} "
        f"{style.state(clean(result['outcome']))} at generation {result['generation']}{reason}"
    )
    moved, silent = result.get("bytes_moved", 0), ", ".join(result.get("silent", []))
    about = pairs(
        [
            ("held for", duration(result["pause"])),
            ("longest added wait", duration(result["longest_added_wait"])),
            ("requests", _counted(result)),
            ("silent", f"{silent}: not in these numbers" if silent else ""),
            ("moved", size(moved) if moved else ""),
            *((step, f"{spent * 1000:.0f} ms") for step, spent in result["steps"].items()),
        ]
    )
    return f"{first}\n{about}"


def history(result: Json, style: Style) -> str:
    """The migrations, each a line, with the ledgers of those that ended."""
    records = result.get("migrations", [])
    if not records:
        return "no migrations"
    rows = []
    for record in records:
        account = record.get("ledger") or {}
        rows.append(
            (
                _moment(record.get("began")),
                record["site"],
                record["source"],
                record["target"],
                ", ".join(each["name"] for each in record.get("along", [])),
                record["state"],
                duration(account["pause"]) if "pause" in account else "",
                duration(account["longest_added_wait"]) if "pause" in account else "",
                account.get("held", ""),
                account.get("failed", ""),
                account.get("ambiguous", ""),
                record.get("reason") or "",
            )
        )
    numbers = ("PAUSE", "WAIT", "HELD", "FAILED", "AMBIGUOUS")
    return table(_HISTORY, rows, style, right=numbers, states=["STATE"])


def changed(verb: str) -> Callable[[Json, Style], str]:
    """What a command has done to a site's definition, said with ``verb``."""

    def render(result: Json, style: Style) -> str:
        name = result.get("site") or result.get("name") or ""
        backend = f", backend {result['backend']}" if result.get("backend") else ""
        number = result.get("generation")
        at = f" at generation {number}" if number is not None else ""
        return clean(f"{name}{backend}: {verb}{at}")

    return render


def applied(result: Json, style: Style) -> str:
    """What an apply has changed."""
    lines = [
        f"{what}: {listed(result[what])}"
        for what in ("added", "changed", "removed")
        if result.get(what)
    ]
    return "\n".join([*lines, f"unchanged: {len(result.get('unchanged', []))}"])


def reloaded(result: Json, style: Style) -> str:
    """What a reload has changed."""
    parts = [
        f"{words} {listed(result[what])}" for what, words in _RELOADED.items() if result.get(what)
    ]
    warnings = [style.paint(clean(problem), "yellow") for problem in result.get("warnings", [])]
    if not parts and not warnings:
        parts.append("nothing has changed")
    return "\n".join(["; ".join(parts), *warnings] if parts else warnings)


def certificates(result: Json, style: Style) -> str:
    """Every certificate: what for, until when, from which file, and what is wrong."""
    found, issued = result.get("certificates", []), result.get("acme", [])
    tables = [_found(found, style)] if found or not issued else []
    if issued:
        rows = [
            (one["site"], one["state"], _moment(one["next_look"]), one["error"]) for one in issued
        ]
        tables.append(table(_ISSUED, rows, style, states=["STATE"]))
    return "\n\n".join(tables)


def _found(found: list[Json], style: Style) -> str:
    if not found:
        return "no certificates"
    rows = [
        (
            _shortened(one["names"]) or "none",
            _moment(one["not_after"]),
            one["source"],
            one["problem"].removeprefix(f"{one['source']}: "),
        )
        for one in found
    ]
    return table(_CERTIFICATES, rows, style)


def definition(result: Json, style: Style) -> str:
    """A site's definition as TOML that `site add --from` takes, with its placement as remarks."""
    placement = result.get("placement") or {}
    remarks = [
        f"from: {result.get('source', '?')}",
        *(f"{key}: {value}" for key, value in placement.items() if value is not None),
    ]
    lines = [style.paint(f"# {clean(remark)}", "dim") for remark in remarks]
    return "\n".join([*lines, *_toml(result.get("definition", {}), ())])


def event(params: Json, style: Style) -> str:
    """One line of `watch`: when, which site, what, and the rest as name=value."""
    rest = dict(params)
    when = _clock(rest.pop("time", None))
    site = clean(rest.pop("site", "") or "-")
    what = next((clean(rest.pop(key)) for key in ("event", "kind", "what") if key in rest), "")
    message = clean(rest.pop("message", ""))
    rest.pop("along", None)  # told for programs, with each step
    more = " ".join(f"{clean(key)}={_word(value)}" for key, value in rest.items())
    words = (style.paint(when, "dim"), style.paint(site, "bold"), what, message, more)
    return " ".join(word for word in words if word)


def nothing(result: Json, style: Style) -> str:
    """No text: what was to be said has been said."""
    return ""


def winner(placement: Json) -> str:
    """What a lost race was lost against."""
    text = f"generation {placement.get('generation', '?')} by {placement.get('by', '?')} came first"
    if "mode" in placement:
        text += f": it is {placement['mode']} on {placement.get('backend', '?')}"
    return clean(text)


def _certificate_warnings(certificates: Json, style: Style) -> list[str]:
    now = time.time()
    warnings = [
        f"the certificate for {_shortened(one['names'])} expires in"
        f" {duration(one['not_after'] - now)}; renew {one['source']}"
        for one in certificates.get("expiring", [])
        if one["not_after"] > now  # those that have expired are among the problems
    ]
    warnings += certificates.get("problems", [])
    return [style.paint(clean(warning), "yellow") for warning in warnings]


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _servers(site: Json) -> str:
    servers = site["backends"].get(site["backend"], {})
    up = sum(health == "up" for health in servers.values())
    return f"{up}/{len(servers)} up"


def _troubles(site: Json) -> list[str]:
    found = [site["trouble"]] if site.get("trouble") else []
    if site.get("migration"):
        found.append(f"is moving to {site['migration']['target']}: {site['migration']['step']}")
    if ambiguous := site["counters"]["ambiguous"]:
        found.append(f"{ambiguous} requests are ambiguous: they may have been carried out")
    if (acme := site.get("acme")) and acme["error"]:
        lacks = "has no certificate"
        if acme["not_after"] is not None:
            left = acme["not_after"] - time.time()
            ends = f"ends in {duration(left)}" if left > 0 else "has expired"
            lacks = f"needs another certificate, as the present one {ends}"
        found.append(f"{lacks}: {acme['error']}{_next_try(acme)}")
    servers = site["backends"].get(site["backend"], {})
    return found + [f"{url} is {health}" for url, health in servers.items() if health != "up"]


def _next_try(acme: Json) -> str:
    again = acme["next_look"]
    return f"; next try in {duration(max(0.0, again - time.time()))}" if again else ""


def _counted(counters: Json) -> str:
    shown = [f"{counters.get('requests', 0)} taken in"]
    shown += [f"{counters[name]} {name}" for name in _OUTCOMES if counters.get(name)]
    return ", ".join(shown if len(shown) > 1 else [*shown, "none failed"])


def _moment(began: object) -> str:
    if isinstance(began, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began))
    return str(began or "")


def _clock(at: object) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at if isinstance(at, int | float) else None))


def _word(value: object) -> str:
    return clean(value) if isinstance(value, str) else json.dumps(value)


def _toml(values: Json, path: tuple[str, ...]) -> list[str]:
    # JSON's strings, numbers, booleans and lists of them are written as in TOML.
    lines = [
        f"{_key(key)} = {_value(value)}"
        for key, value in values.items()
        if not isinstance(value, Mapping) and value is not None
    ]
    if path and lines:
        lines = ["", f"[{'.'.join(map(_key, path))}]", *lines]
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _toml(value, (*path, key))
    return lines


def _value(value: object) -> str:
    return clean(json.dumps(value, ensure_ascii=False))


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _value(key)
