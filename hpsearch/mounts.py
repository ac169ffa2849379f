"""File systems: of which kind the one is on which a path lies, by the system's table of mounts."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

TABLE = Path("/proc/self/mounts")  # Linux; elsewhere the command `mount` is asked

# Kinds of file systems whose files are those of other machines: SQLite's locks and its shared memory do not work there
# (https://sqlite.org/wal.html, https://sqlite.org/lockingv3.html).
_NETWORK = """
9pnet afpfs afs beegfs ceph cifs coda cvmfs davfs davfs2 dfs drbdfs fhgfs gcsfuse gfs gfs2 glusterfs goofys gpfs ibrix
juicefs lustre mfs moosefs mountpoint-s3 ncpfs nfs nfs3 nfs4 nfsd ocfs2 orangefs panfs pvfs2 quobyte rclone s3fs smb
smb2 smb3 smbfs sshfs vastnfs wekafs webdav webdavfs xtreemfs
"""
# Files of the machine outside of a virtual machine or container: good, if nothing else there uses them.
_SHARED = "9p virtiofs vboxsf vmhgfs prl_fs osxfs grpcfuse drvfs fakeowner"
# Programs of users that show what is on this machine; of other ones nobody knows.
_LOCAL_FUSE = "blk bindfs encfs ext2 gocryptfs mergerfs ntfs-3g overlayfs fuse-overlayfs snapfuse squashfuse unionfs"
NETWORK, SHARED, LOCAL_FUSE = (frozenset(kinds.split()) for kinds in (_NETWORK, _SHARED, _LOCAL_FUSE))
MEMORY = frozenset(("tmpfs", "ramfs", "devtmpfs"))


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, and of which kind."""

    point: Path
    kind: str

    @property
    def name(self) -> str:
        """The kind without what says that a program of a user provides it: fuse.sshfs is sshfs."""
        return re.sub(r"(-fuse|\.fuse)$", "", self.kind.lower().removeprefix("fuse."))

    @property
    def network(self) -> bool:
        """Whether its files are those of another machine."""
        return self.name in NETWORK

    @property
    def doubtful(self) -> bool:
        """Whether they may be: shared with a host, or provided by a program that is not known here."""
        if self.network:
            return False
        provided = self.kind.lower().startswith(("fuse", "macfuse", "osxfuse"))
        return self.name in SHARED or (provided and self.name.removeprefix("fuse") not in LOCAL_FUSE)

    @property
    def in_memory(self) -> bool:
        """Whether its files are gone when the machine restarts."""
        return self.name in MEMORY


def mount_of(path: Path, table: str | None = None) -> Mount | None:
    """The file system of a path that need not exist yet; None if the table does not tell."""
    place = nearest(path).resolve()
    mounts = [mount for mount in parse(read_table() if table is None else table) if place.is_relative_to(mount.point)]
    # The last of those with the longest point: what is mounted later hides what was there before.
    return max(mounts, key=lambda mount: len(mount.point.parts), default=None) if mounts else None


def nearest(path: Path) -> Path:
    """The path, or the first folder above it that exists."""
    path = Path(os.path.expanduser(path)).absolute()  # Path's own raise if there is no such user, or no right to look
    return next((place for place in (path, *path.parents) if os.path.exists(place)), Path(path.anchor))


def read_table() -> str:
    """The system's table of mounts; empty if it cannot be had."""
    try:
        if TABLE.is_file():
            return TABLE.read_text(errors="replace")
        return subprocess.run(["mount"], capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def parse(table: str) -> list[Mount]:
    """The mounts, the last one first; a line is "device point kind" on Linux, "device on point (kind, ..)" on BSD."""
    found = []
    for line in reversed(table.splitlines()):
        bsd = re.match(r".+ on (/.*) \((\w+)", line)
        fields = line.split()
        if bsd:
            found.append(Mount(Path(bsd[1]), bsd[2]))
        elif len(fields) >= 3 and fields[1].startswith("/"):
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1])
            found.append(Mount(Path(point), fields[2]))
    return found
