"""The mount table, read: what is mounted, what is hidden, and what is something else."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awesomeproxy.mountinfo import Mounting, MountState, escape, parse, states, unescape

ROOT = b"27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard\n"
DATASET = Mounting("/srv/blog", "tank/blog")


def line(number: int, parent: int, point: str, more: str = "", **kind: str) -> bytes:
    """One mount; ``kind``: root, options, fstype, source, super_options."""
    root, options = kind.get("root", "/"), kind.get("options", "rw,relatime")
    filesystem = f"{kind.get('fstype', 'zfs')} {kind.get('source', 'tank/blog')}"
    ours = f"{number} {parent} 0:{number} {root} {point} {options} {more}"
    return f"{ours}- {filesystem} {kind.get('super_options', 'rw,xattr')}\n".encode()


def state(*lines: bytes, of: Mounting = DATASET) -> MountState:
    """How it stands with one filesystem."""
    return states(b"".join(lines), {"blog": of})["blog"]


class TestLines:
    def test_all_fields(self) -> None:
        """The fields are those of proc_pid_mountinfo(5)."""
        found = parse(
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw"
        )
        assert (found.id, found.parent, found.root, found.point) == (36, 35, b"/mnt1", b"/mnt2")
        assert (found.fstype, found.source, found.read_only) == ("ext3", "/dev/root", False)

    @pytest.mark.parametrize(
        ("more", "source"), [("", "tank/blog"), ("shared:1 master:2 unbindable ", "-"), ("", "")]
    )
    def test_optional_fields_and_odd_sources(self, more: str, source: str) -> None:
        """There are any number of optional fields; a source may be a dash, or empty."""
        found = parse(line(30, 27, "/srv/blog", more, source=source).rstrip())
        assert (found.source, found.fstype) == (source, "zfs")

    @pytest.mark.parametrize(
        ("options", "super_options", "read_only"),
        [
            ("rw,relatime", "rw", False),
            ("ro,relatime", "rw", True),
            ("rw,relatime", "ro", True),
            ("rw,relatime", "rw,errors=remount-ro", False),
        ],
    )
    def test_read_only(self, options: str, super_options: str, read_only: bool) -> None:
        """A mount is read-only if it is itself, or if the filesystem is."""
        found = parse(line(1, 2, "/", options=options, super_options=super_options).rstrip())
        assert found.read_only is read_only

    @pytest.mark.parametrize(
        "bad",
        [b"", b"cat: /proc/self/mountinfo: No such file", b"1 2 3:4 / / rw - ext4", b"x" * 99],
    )
    def test_what_is_no_line(self, bad: bytes) -> None:
        """Anything else is refused, and shown."""
        with pytest.raises(ValueError, match="is not a line of mountinfo"):
            parse(bad)

    @given(st.binary().map(lambda name: name.replace(b"\0", b"")))
    def test_escapes(self, name: bytes) -> None:
        """Every name survives, and has nothing in it that divides fields or lines."""
        assert unescape(escape(name)) == name
        assert not set(escape(name)) & set(b" \t\n")

    @given(st.binary(min_size=1).map(lambda name: b"/" + name.replace(b"\0", b"")))
    def test_names_in_a_table(self, name: bytes) -> None:
        """A path of any bytes is found where it is mounted."""
        path = os.path.normpath(os.fsdecode(name)).replace("//", "/")
        entry = b"30 27 0:5 / %b rw - tmpfs tmpfs rw\n" % escape(os.fsencode(path))
        assert state(ROOT, entry, of=Mounting(path)).mounted


class TestStates:
    def test_mounted(self) -> None:
        """The dataset at its path."""
        assert state(ROOT, line(30, 27, "/srv/blog")) == MountState(True, "tank/blog", "zfs")

    def test_zfs_in_user_space(self) -> None:
        """zfs-fuse has the dataset as its source, too."""
        entry = (
            b"42 27 0:39 / /tmp/mvz/blog rw,relatime - fuse.zfs mvza/blog "
            b"rw,user_id=0,group_id=0,default_permissions,allow_other\n"
        )
        found = state(ROOT, entry, of=Mounting("/tmp/mvz/blog", "mvza/blog"))
        assert found == MountState(True, "mvza/blog", "fuse.zfs")

    def test_not_mounted(self) -> None:
        """Mounts beside, above and below the path are not at it."""
        others = (
            line(30, 27, "/srv"),
            line(31, 30, "/srv/blog2"),
            line(32, 30, "/srv/blog/deep"),
            line(33, 27, "/blog"),
        )
        assert state(ROOT, *others) == MountState(False, why="nothing is mounted on /srv/blog")

    @pytest.mark.parametrize("path", ["/srv/blog/", "//srv//blog", "/srv/./blog"])
    def test_the_same_path_written_otherwise(self, path: str) -> None:
        """What is more than needed in a path does not matter."""
        assert state(ROOT, line(30, 27, "/srv/blog"), of=Mounting(path)).mounted

    def test_a_relative_path(self) -> None:
        """It is refused, with the remedy."""
        with pytest.raises(ValueError, match="'srv/blog' is not absolute; write it from / on"):
            Mounting("srv/blog")

    def test_the_root(self) -> None:
        """The root can be watched like any other."""
        assert state(ROOT, of=Mounting("/", "/dev/vda")).mounted

    def test_another_source(self) -> None:
        """Something else at the path is told, and does not count."""
        found = state(ROOT, line(30, 27, "/srv/blog", source="tank/old"))
        assert found == MountState(
            False, "tank/old", "zfs", why="tank/old is mounted on /srv/blog, not tank/blog"
        )
        assert state(
            ROOT, line(30, 27, "/srv/blog", source="tank/old"), of=Mounting("/srv/blog")
        ).mounted

    def test_a_part_of_the_source(self) -> None:
        """A bind mount of a directory of the dataset is not the dataset."""
        entry = line(30, 27, "/srv/blog", root="/sub")
        found = state(ROOT, entry)
        assert not found.mounted
        assert found.why == "/sub of tank/blog is mounted on /srv/blog, not /"
        assert state(ROOT, entry, of=Mounting("/srv/blog", "tank/blog", "/sub")).mounted
        assert state(ROOT, entry, of=Mounting("/srv/blog")).mounted

    def test_read_only(self) -> None:
        """A fenced source is mounted, and read-only."""
        found = state(ROOT, line(30, 27, "/srv/blog", options="ro,relatime"))
        assert found.mounted
        assert found.read_only

    def test_an_automount_point(self) -> None:
        """It is not mounted before something is mounted on it."""
        automount = line(30, 27, "/srv/blog", fstype="autofs", source="systemd-1")
        assert not state(ROOT, automount, of=Mounting("/srv/blog")).mounted
        assert state(ROOT, automount, line(31, 30, "/srv/blog"), of=Mounting("/srv/blog")).mounted

    def test_the_topmost_counts(self) -> None:
        """Of what is stacked at one place it is the last, in whatever order the lines are."""
        below, above = line(30, 27, "/srv/blog"), line(31, 30, "/srv/blog", source="tank/other")
        for lines in ((ROOT, below, above), (above, below, ROOT)):
            assert not state(*lines).mounted
            assert state(*lines, of=Mounting("/srv/blog", "tank/other")).mounted

    def test_hidden_by_what_is_mounted_above_it(self) -> None:
        """What is mounted on /srv hides what had been on /srv/blog, and not what comes later."""
        blog, srv = line(30, 27, "/srv/blog"), line(31, 27, "/srv", source="tmp", fstype="tmpfs")
        found = state(ROOT, blog, srv)
        assert not found.mounted
        assert found.why == (
            "what is mounted on /srv/blog is hidden by tmp, mounted over it on /srv"
        )
        assert state(ROOT, blog, srv, line(32, 31, "/srv/blog")).mounted

    def test_hidden_by_another_root(self) -> None:
        """What is mounted on / hides everything below."""
        assert not state(ROOT, line(30, 27, "/srv/blog"), line(31, 27, "/")).mounted

    def test_a_root_of_ones_own(self) -> None:
        """In a changed root that is no mount the parents of its mounts are not in the table."""
        table = (line(30, 99, "/srv"), line(31, 30, "/srv/blog"))
        assert state(*table).mounted
        assert not state(*table, line(32, 30, "/srv/blog/x"), of=Mounting("/srv/blog/y")).mounted

    def test_a_root_that_is_its_own_parent(self) -> None:
        """As the first mount of all is."""
        assert state(line(1, 1, "/", fstype="rootfs"), line(30, 1, "/srv/blog")).mounted

    def test_mounts_in_a_circle(self) -> None:
        """A table that changed while it was read ends, too."""
        assert not state(ROOT, line(30, 31, "/srv/blog"), line(31, 30, "/srv/blog")).mounted

    def test_other_ends_of_lines_in_names(self) -> None:
        """Only a newline ends a line."""
        assert state(
            ROOT, line(29, 27, "/srv/\r29\x0b\x1c\x85"), line(30, 27, "/srv/\rblog"),
            of=Mounting("/srv/\rblog"),
        ).mounted  # fmt: skip

    @pytest.mark.parametrize(
        "bad",
        [
            b"",
            b"\n",
            ROOT + b"30 27",
            b"cat: no such file\n",
            b"a b c d e f g\n",
            ROOT + b"bash: x: not found\n",
        ],
    )
    def test_what_is_no_table(self, bad: bytes) -> None:
        """Nothing is concluded from what is no table, or not all of it."""
        with pytest.raises(ValueError, match="mount"):
            states(bad, {"blog": DATASET})
