"""`pagectl` on the files and objects of real timelines: shows what is there, and finds whatever byte is damaged."""

import os
import random
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from fixtures import lsn
from fixtures.neon_env import NeonEnvBuilder
from fixtures.processes import wait_until

SVG = "{http://www.w3.org/2000/svg}"
LAYER_NAME = re.compile(r"[0-9A-F]{36}-[0-9A-F]{36}__[0-9A-F]{16}(-[0-9A-F]{16})?")


class Site:
    """A cluster that is stopped, with a timeline that has layers of all kinds, a branch, and object storage."""

    def __init__(self, builder: NeonEnvBuilder):
        builder.with_local_fs()
        builder.tenant_settings |= {
            "checkpoint_distance": 1024 * 1024,
            "compaction_target_size": 1024 * 1024,
            "compaction_period": "0s",
            "compaction_threshold": 3,
            "image_creation_threshold": 1,
            "gc_period": "0s",
        }
        self.env = env = builder.start()
        main, http = env.endpoint("main").start(), env.pageserver.http()
        self.main = env.timelines["main"]
        main.sql("CREATE TABLE t (i int PRIMARY KEY, v text)")
        for step in range(6):
            main.sql(f"INSERT INTO t SELECT i, repeat('{step}', 300) FROM generate_series({step}000, {step}999) i")
            http.checkpoint(env.tenant, self.main)
            if step == 3:
                http.compact(env.tenant, self.main)
            if step == 4:
                self.branch = env.branch("branch")
        # The last flush leaves one of level 0, to which that of the end comes: too few to be compacted.
        while self.level0(http) != 1:
            main.sql("UPDATE t SET v = v WHERE i < 10")
            http.checkpoint(env.tenant, self.main)
        main.stop()
        (safekeeper,) = env.safekeepers
        committed = safekeeper.position("commit_lsn")

        def has_all() -> bool:
            return lsn.parse(http.timeline(env.tenant, self.main)["last_record_lsn"]) >= committed

        wait_until(has_all, "the pageserver has all WAL", 60)
        http.checkpoint(env.tenant, self.main)
        wait_until(self.is_uploaded, "everything is uploaded", 60)
        env.pageserver.stop()

    def level0(self, http) -> int:
        """Number of level 0 layers."""
        layers = http.layers(self.env.tenant, self.main)["historic_layers"]
        return sum(is_level0(layer["layer_file_name"]) for layer in layers)

    def is_uploaded(self) -> bool:
        """Whether files and objects agree."""
        # What a compaction has replaced goes after the index without it.
        return all(
            {path.name for path in self.local(timeline).iterdir()} - {"metadata"}
            == {path.name for path in self.remote(timeline).iterdir()} - {"index_part.json"}
            for timeline in (self.main, self.branch)
        )

    def local(self, timeline: str) -> Path:
        """A timeline's directory."""
        return self.env.repo / "tenants" / self.env.tenant / "timelines" / timeline

    def remote(self, timeline: str) -> Path:
        """The directory with a timeline's objects."""
        root = self.env.remote_storage.path / "pageserver"
        return root / "tenants" / self.env.tenant / "timelines" / timeline

    def arguments(self, timeline: str) -> list[str]:
        """What a command needs to know about a timeline with its objects."""
        return [str(self.local(timeline)), "--remote-storage", self.env.remote_storage.table("pageserver")]

    def scrub(self, timeline: str, status: int = 0) -> str:
        """What a scrub says that ends with the status given."""
        return self.env.pagectl("scrub", *self.arguments(timeline), status=status)

    def files(self) -> list[Path]:
        """All files and objects of the main timeline."""
        paths = [*self.local(self.main).iterdir(), *self.remote(self.main).iterdir()]
        return sorted(paths)


def flip(path: Path, at: int, bits: int) -> bytes:
    """Changes a byte of a file; returns what the file held."""
    sound = path.read_bytes()
    bad = bytearray(sound)
    bad[at] ^= bits
    path.write_bytes(bad)
    return sound


def is_level0(name: str) -> bool:
    """Whether it is the name of a delta over all keys."""
    return name.startswith(f"{'0' * 36}-{'F' * 36}__") and name.count("-") == 2


def layers_in(path: Path) -> list[Path]:
    return sorted(found for found in path.iterdir() if LAYER_NAME.fullmatch(found.name))


@pytest.fixture
def site(neon_env_builder: NeonEnvBuilder) -> Site:
    return Site(neon_env_builder)


def test_what_a_timeline_has_become_can_be_seen(site: Site):
    env = site.env
    text = env.pagectl("layer-map", *site.arguments(site.main))
    names = {path.name for path in layers_in(site.local(site.main))}
    lines = [line for line in text.splitlines() if " both " in line]
    assert len(lines) == len(names)
    kinds = [line.split()[0] for line in lines]
    assert {"L0", "delta", "image"} == set(kinds), kinds
    assert f"branch                {site.branch} at " in text
    assert f"ancestor              {site.main} at " in env.pagectl("layer-map", *site.arguments(site.branch))

    picture = site.env.repo / "map.svg"
    env.pagectl("layer-map", *site.arguments(site.main), "--svg", str(picture))
    root = ElementTree.parse(picture).getroot()
    rectangles = root.findall(f"{SVG}rect")
    assert {LAYER_NAME.search(rect.find(f"{SVG}title").text).group() for rect in rectangles} == names
    assert sorted(rect.get("class") for rect in rectangles) == sorted(kinds)
    labels = [label.text for label in root.findall(f"{SVG}text")]
    assert any(label.endswith(site.branch) for label in labels) and any("GC cutoff" in label for label in labels)
    assert len(root.findall(f"{SVG}line")) == len(labels)

    # Layers, by their own summaries; with values, as many as the summary says.
    for path in layers_in(site.local(site.main)):
        summary = env.pagectl("dump-layer", str(path))
        assert path.name in summary and site.main in summary
        values = env.pagectl("dump-layer", str(path), "--values").splitlines()[len(summary.splitlines()) :]
        assert len(values) == int(re.search(r"^values +(\d+)$", summary, re.MULTILINE).group(1))
    index = env.pagectl("dump-index", str(site.remote(site.main) / "index_part.json"))
    assert {LAYER_NAME.match(line).group() for line in index.splitlines() if LAYER_NAME.match(line)} == names
    metadata = env.pagectl("dump-metadata", str(site.local(site.main) / "metadata"))
    assert set(metadata.splitlines()) <= set(text.splitlines())


def test_a_scrub_finds_what_is_missing_and_what_is_left_over(site: Site):
    env, main = site.env, site.main
    for timeline in (main, site.branch):
        assert site.scrub(timeline).startswith("sound: ")
    # Evicted is not missing.
    evicted = layers_in(site.local(main))[0]
    contents = evicted.read_bytes()
    evicted.unlink()
    assert site.scrub(main).startswith("sound: ")
    # Without the object, that layer is.
    gone = site.remote(main) / evicted.name
    gone.unlink()
    report = site.scrub(main, status=1)
    assert f"{evicted.name}: there is no such object" in report and report.startswith("damage: ")
    evicted.write_bytes(contents)
    report = site.scrub(main, status=1)
    assert f"{evicted.name}: there is no such object" in report and report.startswith("repairable: ")
    gone.write_bytes(contents)
    # An object that no index names, and a file.
    name = f"{'0' * 36}-{'F' * 36}__0000000000000010-0000000000000020"
    orphan = site.remote(main) / name
    orphan.write_bytes(b"x")
    assert f"{name}: orphan" in site.scrub(main)
    orphan.unlink()
    # Without object storage, a lost layer shows by the LSNs that no other has.
    assert env.pagectl("scrub", str(site.local(main))).startswith("sound: ")
    next(path for path in layers_in(site.local(main)) if is_level0(path.name)).unlink()
    assert "no layer has LSNs" in env.pagectl("scrub", str(site.local(main)))
    # All of it gone but the objects.
    for path in site.local(main).iterdir():
        path.unlink()
    site.local(main).rmdir()
    assert site.scrub(main).startswith("sound: 0 files")


def test_any_damaged_byte_is_found_and_named(site: Site):
    rng = random.Random(5)
    # A scrub reads everything, so there is time for few of them.
    nightly = bool(os.environ.get("NEON_NIGHTLY"))
    paths = site.files()
    assert len(paths) > 10
    for path in paths:
        # Small files have more kinds of bytes.
        is_small = path.name in ("metadata", "index_part.json")
        samples = 20 if nightly else 4 if is_small else rng.randrange(2)
        for _ in range(samples):
            at = rng.randrange(path.stat().st_size)
            sound = flip(path, at, 1 << rng.randrange(8))
            report = site.scrub(site.main, status=1)
            is_local = path.parent == site.local(site.main)
            where = f"file {path}" if is_local else f"object tenants/{site.env.tenant}/timelines/{site.main}/{path.name}"
            blamed = [line for line in report.splitlines() if line.startswith(("damage: ", "repairable: "))]
            assert len(blamed) == 1 and f": {where}: " in blamed[0], f"byte {at} of {path}: {report}"
            path.write_bytes(sound)
    assert site.scrub(site.main).startswith("sound: ")
