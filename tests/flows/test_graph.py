from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.graph import Policy, load

REPOSITORY = Path(__file__).parents[2]
GRAPH = """
stages:
  sweep:
    cmd: cp middle sweep
    deps: [middle, left.txt, right.txt]
    outs: [sweep]
  first:
    desc: The first
    cmd: cp raw first.txt
    deps: [raw]
    outs: [first.txt]
    meta: {prefect: {retries: 2, timeout: 60, grace: 5, tags: [gpu]}, somebody_else: 1}
  side:
    matrix: {name: [left, right]}
    cmd: cp first.txt ${item.name}.txt
    deps: [first.txt]
    outs: ["${item.name}.txt"]
  middle:
    cmd: cp first.txt middle
    deps: [first.txt]
    outs: [middle]
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project with a tracked source, a chain, a matrix and a join; the current folder is elsewhere."""
    Repo.init(str(tmp_path), no_scm=True)
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "raw").write_text("photo")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        with Repo(str(tmp_path)) as repo:
            repo.add("raw")
    return tmp_path


def test_the_graph_is_that_of_dvc_with_sources_and_a_matrix_spread_out(toy: Path) -> None:
    needs = {node.name: node.needs for node in load(toy)}
    assert needs == {
        "raw.dvc": (),
        "first": ("raw.dvc",),
        "side@left": ("first",),
        "side@right": ("first",),
        "middle": ("first",),
        "sweep": ("middle", "side@left", "side@right"),
    }
    assert [node.name for node in load(toy) if node.is_source] == ["raw.dvc"]


def test_every_node_comes_after_what_it_needs(toy: Path) -> None:
    seen: set[str] = set()
    for node in load(toy):
        assert seen.issuperset(node.needs)
        seen.add(node.name)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["first"], {"raw.dvc", "first"}),
        (["side"], {"raw.dvc", "first", "side@left", "side@right"}),
        (["side@left", "middle"], {"raw.dvc", "first", "side@left", "middle"}),
        (["raw.dvc"], {"raw.dvc"}),
    ],
)
def test_a_target_brings_what_it_needs_and_nothing_else(toy: Path, targets: list[str], names: set[str]) -> None:
    assert {node.name for node in load(toy, targets)} == names


def test_description_and_policy_stand_beside_the_stage(toy: Path) -> None:
    first = next(node for node in load(toy) if node.name == "first")
    assert first.description == "The first"
    assert first.policy == Policy(retries=2, timeout=60, grace=5, tags=["gpu"])


def test_a_stage_without_policy_has_the_defaults(toy: Path) -> None:
    assert next(node for node in load(toy) if node.name == "sweep").policy == Policy()


def test_an_unknown_target_is_refused_with_the_nearest_known_one(toy: Path) -> None:
    with pytest.raises(ValueError, match=r"'midle' is not a stage of dvc.yaml; did you mean middle\?"):
        load(toy, ["midle"])
    with pytest.raises(ValueError, match=r"'xyz' is not a stage of dvc.yaml; known stages: first, middle, raw.dvc, side@left"):
        load(toy, ["xyz"])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("retires: 2", r"meta.prefect of stage `first` in dvc.yaml: `retires`: Extra inputs .* Known keys: retries, retry_delay"),
        ("timeout: 0", "`timeout`: Input should be greater than 0"),
        ("retries: -1", "`retries`: Input should be greater than or equal to 0"),
        ("retries: '2'", "`retries`: Input should be a valid integer"),
        ("grace: 0", "`grace`: Input should be greater than 0"),
    ],
)
def test_a_slip_in_a_policy_is_found_before_anything_starts(toy: Path, policy: str, message: str) -> None:
    (toy / "dvc.yaml").write_text(GRAPH.replace("retries: 2, timeout: 60, grace: 5, tags: [gpu]", policy))
    with pytest.raises(ValueError, match=message):
        load(toy)


def test_a_policy_does_not_touch_what_dvc_thinks_is_up_to_date(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy)
    with Repo(str(toy)) as repo:
        repo.reproduce()
    (toy / "dvc.yaml").write_text(GRAPH.replace("retries: 2", "retries: 7"))
    with Repo(str(toy)) as repo:
        assert repo.status() == {}


@pytest.mark.parametrize("content", ["stages: {first: {command: x}}", "stages: [", "stages: {a: {cmd: x, deps: [b], outs: [b]}}"])
def test_a_mistake_in_dvc_yaml_is_one_sentence(toy: Path, content: str) -> None:
    (toy / "dvc.yaml").write_text(content)
    with pytest.raises(ValueError, match="DVC cannot read the project in"):
        load(toy)


def test_a_folder_without_dvc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="DVC cannot read the project in"):
        load(tmp_path)


def test_the_projects_own_stages_have_readable_policies() -> None:
    nodes = {node.name: node for node in load(REPOSITORY)}
    assert all(node.policy.tags for node in nodes.values() if not node.is_source)
