"""File systems: what tables of mounts say, on Linux and on BSD, and what the machine's own table says."""

from pathlib import Path

import pytest

from hpsearch.mounts import Mount, mount_of
from tests.disks import small_disk

LINUX = """
/dev/sda1 / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/local ext4 rw 0 0
//server/share /mnt/with\\040space cifs rw 0 0
me@host:/data /mnt/ssh fuse.sshfs rw 0 0
ceph /mnt/ceph fuse.ceph-fuse rw 0 0
lustre@tcp:/fs /scratch lustre rw 0 0
/dev/gpfs /gpfs gpfs rw 0 0
/dev/sdc1 /mnt/hidden ext4 rw 0 0
server:/b /mnt/hidden nfs rw 0 0
/dev/sdd1 /mnt/ntfs fuseblk rw 0 0
host /mnt/host virtiofs rw 0 0
drive /mnt/drive fuse.somedrive rw 0 0
tmpfs /run tmpfs rw 0 0
overlay /var/container overlay rw 0 0
"""
BSD = """
/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled)
//me@server/share on /Volumes/with space (smbfs, nodev, nosuid, mounted by me)
server:/export on /Volumes/nfs (nfs, nodev)
"""


@pytest.mark.parametrize(
    ("path", "kind", "verdict"),
    [
        ("/data/x.db", "ext4", "local"),
        ("/home/me/x.db", "nfs4", "network"),
        ("/home/local/x.db", "ext4", "local"),
        ("/homeless/x.db", "ext4", "local"),
        ("/mnt/with space/x.db", "cifs", "network"),
        ("/mnt/ssh/x.db", "fuse.sshfs", "network"),
        ("/mnt/ceph/x.db", "fuse.ceph-fuse", "network"),
        ("/scratch/x.db", "lustre", "network"),
        ("/gpfs/x.db", "gpfs", "network"),
        ("/mnt/hidden/x.db", "nfs", "network"),
        ("/mnt/ntfs/x.db", "fuseblk", "local"),
        ("/mnt/host/x.db", "virtiofs", "doubtful"),
        ("/mnt/drive/x.db", "fuse.somedrive", "doubtful"),
        ("/var/container/x.db", "overlay", "local"),
    ],
)
def test_linux(path: str, kind: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.mounts.nearest", lambda place: place)  # these folders are not here
    mount = mount_of(Path(path), LINUX)
    assert mount is not None
    assert mount.kind == kind
    assert verdict_of(mount) == verdict


@pytest.mark.parametrize(
    ("path", "kind", "verdict"),
    [
        ("/Users/me/x.db", "apfs", "local"),
        ("/Volumes/with space/x.db", "smbfs", "network"),
        ("/Volumes/nfs/x.db", "nfs", "network"),
    ],
)
def test_bsd(path: str, kind: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.mounts.nearest", lambda place: place)
    mount = mount_of(Path(path), BSD)
    assert mount is not None
    assert (mount.kind, verdict_of(mount)) == (kind, verdict)


def verdict_of(mount: Mount) -> str:
    """The two questions as one word."""
    return "network" if mount.network else "doubtful" if mount.doubtful else "local"


def test_no_table_tells_nothing(tmp_path: Path) -> None:
    assert mount_of(tmp_path, "") is None


def test_the_machines_own_table(tmp_path: Path) -> None:
    before = mount_of(tmp_path / "disk" / "not there yet" / "x.db")
    assert before is not None
    with small_disk(tmp_path / "disk", "1m") as disk:
        link = tmp_path / "link"
        link.symlink_to(disk.folder)
        for place in (disk.folder, link):
            mount = mount_of(place / "not there yet" / "x.db")
            assert mount == Mount(disk.folder.resolve(), "tmpfs")
            assert mount.in_memory
    assert mount_of(tmp_path / "disk" / "x.db") == before
