"""Committees: the rule, the bundle, and that an image's score is its own whatever else is scored."""

from pathlib import Path

import numpy as np
import pytest
from factories import utc
from pydantic import ValidationError
from random_bundles import LoadOnce, combine, write
from tiny import jpeg

from marcod.database.engine import Database
from marcod.domain import CRYSTALS
from marcod.errors import BundleError, ConfigError, StoreError
from marcod.model import bundle, combining
from marcod.model.committee import Committee, Member
from marcod.model.probabilities import softmax
from marcod.model.registry import Registry
from marcod.store import serving, versions

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def rule(*weights: float) -> Committee:
    members = tuple(
        Member(name="m", version=i + 1, digest="0" * 64, mean=-1.0 - i, deviation=2.0 + i, weight=weight)
        for i, weight in enumerate(weights)
    )
    return Committee(members=members, clip=10, mean=-1.5, deviation=2.8, fixed_on="nothing")


def scores(count: int, members: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return softmax(rng.normal(0, 4, (count * members, 4))).reshape(count, members, 4)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0, 0.5)])
def test_one_image_alone_scores_as_in_any_batch(weights: tuple[float, ...]) -> None:
    """To the last bit: otherwise stored scores of a rescore would differ from the first."""
    made, given = rule(*weights), scores(257, len(weights))
    whole = made.logits(given)
    assert np.isfinite(whole).all()
    rng = np.random.default_rng(2)
    for size in (1, 2, 3, 7, 16, 100):
        chosen = rng.permutation(len(given))[:size]
        assert np.array_equal(made.logits(given[chosen]), whole[chosen])
    for index in range(0, len(given), 16):
        assert np.array_equal(made.logits(given[index : index + 1].tolist())[0], whole[index])


def test_the_committee_follows_its_members() -> None:
    """More crystals by any member are more for the committee; the other classes keep what their mean says."""
    made, given = rule(2.0, 1.0), scores(50, 2)
    more = given.copy()
    more[:, 1] *= 0.5
    more[:, 1, CRYSTALS] += 0.5
    assert (made.logits(more)[:, CRYSTALS] >= made.logits(given)[:, CRYSTALS]).all()
    same = np.repeat(given[:, :1], 2, axis=1)
    combined, own = softmax(made.logits(same)), same[:, 0]
    others = [i for i in range(4) if i != CRYSTALS]
    assert combined[:, others] / combined[:, others].sum(axis=1, keepdims=True) == pytest.approx(
        own[:, others] / own[:, others].sum(axis=1, keepdims=True), abs=1e-5
    )
    assert softmax(made.logits(np.eye(4)[np.newaxis, [1, 1]])).sum() == pytest.approx(1)


def test_what_is_a_hit_for_every_member_is_one_for_the_committee() -> None:
    made, thresholds = rule(1.0, 1.0), np.array([0.3, 0.05])
    crystal = made.threshold(thresholds.tolist())
    given = scores(500, 2)
    found = softmax(made.logits(given))[:, CRYSTALS] >= crystal
    hits = given[:, :, CRYSTALS] >= thresholds
    assert found[hits.all(axis=1)].all()
    assert not found[~hits.any(axis=1)].any()
    assert 0 < made.threshold([0.0, 0.0]) < made.threshold([1.0, 1.0]) < 1


def test_a_rule_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 2"):
        rule(1.0)
    for weight in (0.0, 1e-320, 1e308):
        with pytest.raises(ValidationError, match="than or equal to"):
            rule(1.0, weight)
    one = rule(1.0, 1.0).members[0]
    with pytest.raises(ValidationError, match="each member once"):
        rule(1.0, 1.0).model_copy().model_validate({**rule(1.0, 1.0).model_dump(), "members": [one, one]})


@pytest.fixture
def registry(db: Database, members: Path) -> LoadOnce:
    found = LoadOnce(db, members)
    found.promote(found.register("left", "1", utc()), actor="test", now=utc())
    return found


@on_sqlite
def test_a_committee_is_a_bundle_without_weights(registry: LoadOnce, members: Path) -> None:
    version = combine(registry, members, "left:1", "own:1")
    folder = registry.path("committee", "1")
    record = bundle.verify(folder)
    assert not (folder / bundle.WEIGHTS_FILE).exists()
    assert [str(m) for m in record.committee.members] == ["left:1", "own:1"]  # type: ignore[union-attr]
    assert record.synthetic
    assert version.synthetic
    loaded, images = registry.load(version, 4), [jpeg(1), jpeg(2)]
    vectors = loaded.predict(np.stack([loaded.prepare(data) for data in images]))
    given = np.stack(
        [
            member.fold(member.predict(np.stack([member.prepare(data) for data in images])))
            for member in (registry.load(registry.find(name), 4) for name in ("left:1", "own:1"))
        ],
        axis=1,
    )
    assert np.array_equal(vectors, softmax(record.committee.logits(given)))  # type: ignore[union-attr]
    assert loaded.networks[0] is registry.load(registry.find("left:1"), 4)
    with pytest.raises(BundleError, match="the weights are those of left:1 and own:1"):
        bundle.load_weights(folder)


@on_sqlite
def test_a_committee_without_its_members_does_not_serve(registry: LoadOnce, members: Path) -> None:
    version = combine(registry, members, "left:1", "own:1")
    (members / "own" / "1").rename(members / "aside")
    for doing in (
        lambda: registry.register("committee", "1", utc()),
        lambda: registry.promote(version, actor="t", now=utc()),
    ):
        with pytest.raises(BundleError, match="committee:1 cannot serve here: its member own:1 is not on this host"):
            doing()
    assert "own:1 is not on this host" in str(registry.describe("committee:1").problem)
    write(members, "own", 1, seed=9)
    with pytest.raises(BundleError, match="is not the own:1 that it was made with"):
        registry.register("committee", "1", utc())


@on_sqlite
def test_a_damaged_member_is_noticed_before_its_committee_serves(
    registry: LoadOnce, members: Path, db: Database
) -> None:
    """In a process that has it in memory, and in one that starts."""
    version = combine(registry, members, "own:1", "left:1")
    registry.load(version, 4)
    with (members / "own" / "1" / bundle.WEIGHTS_FILE).open("ab") as file:
        file.write(b"x")
    for doing in (
        lambda: registry.load(version, 4),
        lambda: registry.promote(version, actor="t", now=utc()),
        lambda: registry.register("committee", "1", utc()),
        lambda: Registry(db, members).load(version, 4),
    ):
        with pytest.raises(
            BundleError, match=r"^committee:1 cannot serve here: \S*own/1 is damaged: weights.npz has ch"
        ):
            doing()
    assert "own/1 is damaged" in str(registry.why_unusable(registry.describe("committee:1")))
    assert str(db.read(versions.champion)) == "left:1"


@on_sqlite
def test_a_member_stays_as_long_as_its_committee(registry: LoadOnce, members: Path) -> None:
    combine(registry, members, "left:1", "own:1")
    with pytest.raises(StoreError, match=r"own:1 is a member of committee:1.*`marcod model remove committee:1` comes"):
        registry.remove(registry.describe("own:1"), force=True, actor="test", now=utc())
    registry.remove(registry.describe("committee:1"), force=False, actor="test", now=utc())
    registry.remove(registry.describe("own:1"), force=False, actor="test", now=utc())
    assert registry.path("left", "1").is_dir()


@on_sqlite
def test_a_member_stays_where_another_one_cannot_be_read(registry: LoadOnce, members: Path) -> None:
    combine(registry, members, "left:1", "own:1")
    (members / "left" / "1" / bundle.RECORD_FILE).write_text("no record")
    assert "is damaged" in str(registry.describe("committee:1").problem)
    with pytest.raises(StoreError, match="own:1 is a member of committee:1"):
        registry.remove(registry.describe("own:1"), force=True, actor="test", now=utc())
    assert (members / "own" / "1").is_dir()


@on_sqlite
def test_what_cannot_be_combined_is_named(registry: LoadOnce, members: Path) -> None:
    version = combine(registry, members, "left:1", "own:1")
    with pytest.raises(ConfigError, match="committee:1 is a committee; combine its members instead"):
        combining.part(members, registry.load(version, 4))
    one = combining.part(members, registry.load(registry.find("left:1"), 4))
    with pytest.raises(ConfigError, match="left:1 is named twice"):
        combining.check([one, one])
    with pytest.raises(ConfigError, match="two members or more"):
        combining.check([one])
    for weight in (0, 1e308, float("nan")):
        with pytest.raises(ConfigError, match=r"weight of left:1 is .*; give a number from 0\.001 to 1000"):
            combining.part(members, one.predictor, weight)


@on_sqlite
def test_promoted_and_rolled_back_like_any_version(registry: LoadOnce, members: Path, db: Database) -> None:
    version = combine(registry, members, "left:1", "own:1")
    registry.promote(version, actor="test", now=utc(1))
    assert db.read(versions.champion) == version
    registry.rollback(actor="test", now=utc(2))
    assert str(db.read(versions.champion)) == "left:1"
    db.write(lambda c: serving.challenge(c, version, actor="test", now=utc(3)))
    assert db.read(versions.aliased, versions.CHALLENGER) == version
