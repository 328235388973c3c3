import pytest
from transformers import ViTConfig

from hf_zip.errors import HfZipError
from hf_zip.sources import Source
from hf_zip.tasks import Task, labels_of, resolve_tasks, says_nothing
from tests.models import vit


def source(labels, task=None, name="", reference=None):
    return Source(reference or f"models/{name}", vit(names=list(labels)), task=task, name=name)


def resolve(*sources, **options):
    return resolve_tasks(sources, **options)


def test_every_source_is_a_task_of_its_own():
    tasks = resolve(source("ab", name="first"), source("xyz", name="second"))
    assert tasks == (
        Task("first", ("a", "b"), 0, (0,), ((0, 1),)),
        Task("second", ("x", "y", "z"), 2, (1,), ((0, 1, 2),)),
    )
    assert [(task.start, task.stop) for task in tasks] == [(0, 2), (2, 5)]


def test_no_sources_have_no_tasks():
    assert resolve() == ()


def test_the_same_task_shares_a_head_row_by_row():
    tasks = resolve(
        source("abc", task="letters", name="one"),
        source("xy", task="others", name="two"),
        source("cab", task="letters", name="three"),
    )
    assert tasks == (
        Task("letters", ("a", "b", "c"), 0, (0, 2), ((0, 1, 2), (1, 2, 0))),
        Task("others", ("x", "y"), 3, (1,), ((0, 1),)),
    )


def test_the_same_meaningful_labels_without_a_task_share_a_head():
    (task,) = resolve(source("ab", name="one"), source("ba", name="two"))
    assert task == Task("one", ("a", "b"), 0, (0, 1), ((0, 1), (1, 0)))


def test_labels_that_say_nothing_are_kept_apart():
    default = ["LABEL_0", "LABEL_1"]
    tasks = resolve(source(default, name="one"), source(default, name="two"))
    assert [task.labels for task in tasks] == [
        ("one/LABEL_0", "one/LABEL_1"),
        ("two/LABEL_0", "two/LABEL_1"),
    ]
    assert [task.members for task in tasks] == [(0,), (1,)]


def test_labels_that_say_nothing_share_a_head_when_told():
    default = ["LABEL_0", "LABEL_1"]
    (task,) = resolve(source(default, task="t", name="one"), source(default, task="t", name="two"))
    assert task == Task("t", ("t/LABEL_0", "t/LABEL_1"), 0, (0, 1), ((0, 1), (0, 1)))


def test_names_of_tasks_are_unique():
    tasks = resolve(source("ab", name="x"), source("cd", task="x"), source("ef", name="x"))
    assert [task.name for task in tasks] == ["x_0", "x", "x_2"]
    tasks = resolve(source("ab", task="x"), source("cd", task="x_2"), source("ef", name="x"))
    assert [task.name for task in tasks] == ["x", "x_2", "x_2_2"]
    tasks = resolve(source("ab"), source("cd"))
    assert [task.name for task in tasks] == ["task_0", "task_1"]


def test_an_unnamed_source_does_not_join_a_named_task():
    with pytest.raises(HfZipError, match="label 'a' belongs to task 't' and to task 'two'"):
        resolve(source("ab", task="t", name="one"), source("ab", name="two"))


def test_a_label_of_two_tasks():
    sources = (source("ab", name="one"), source("bc", name="two"))
    text = (
        "label 'b' belongs to task 'one' and to task 'two', so an answer would be ambiguous. .* "
        "labels: apart .--labels apart. to keep them apart as 'one/b' and 'two/b'; .* labels: union"
    )
    with pytest.raises(HfZipError, match=text):
        resolve(*sources)
    tasks = resolve(*sources, overlapping="apart")
    assert [task.labels for task in tasks] == [("a", "one/b"), ("two/b", "c")]
    assert [task.rows for task in tasks] == [((0, 1),), ((0, 1),)]


def test_a_default_label_among_others_is_a_label_like_any():
    sources = (source(["LABEL_0", "a"], name="one"), source(["LABEL_0", "b"], name="two"))
    with pytest.raises(HfZipError, match="label 'LABEL_0' belongs to task 'one' and to task 'two'"):
        resolve(*sources)
    tasks = resolve(*sources, overlapping="apart")
    assert [task.labels for task in tasks] == [("one/LABEL_0", "a"), ("two/LABEL_0", "b")]
    tasks = resolve(sources[0], source(["LABEL_0", "LABEL_1"], name="three"))
    assert [task.labels for task in tasks] == [
        ("LABEL_0", "a"),
        ("three/LABEL_0", "three/LABEL_1"),
    ]


def test_three_tasks_of_one_label():
    tasks = resolve(*(source("ab", task=name, name=name) for name in "xyz"), overlapping="apart")
    assert [task.labels for task in tasks] == [(f"{name}/a", f"{name}/b") for name in "xyz"]
    assert [task.start for task in tasks] == [0, 2, 4]


def test_one_task_with_different_labels():
    text = (
        r"'models/one' and 'models/two' both have the task 't', but their labels differ \(2 and "
        r"3 labels; in one only: b, c, d\). Set labels: union .* different tasks, with labels: apart"
    )
    with pytest.raises(HfZipError, match=text):
        resolve(
            source("ab", task="t", name="one"),
            source("acd", task="t", name="two"),
            overlapping="apart",
        )


def test_the_union_of_the_labels_of_one_task():
    tasks = resolve(
        source("ab", task="t", name="one"),
        source("xy", task="u", name="two"),
        source("cbd", task="t", name="three"),
        overlapping="union",
    )
    assert tasks == (
        Task("t", tuple("abcd"), 0, (0, 2), ((0, 1, None, None), (None, 1, 0, 2))),
        Task("u", ("x", "y"), 4, (1,), ((0, 1),)),
    )
    same = (source("ab", task="t", name="one"), source("ba", task="t", name="two"))
    assert resolve(*same, overlapping="union") == resolve(*same)


def test_what_a_union_does_not_decide():
    with pytest.raises(
        HfZipError, match="label 'b' belongs to task 'one' and to task 'two', so an"
    ):
        resolve(source("ab", name="one"), source("bc", name="two"), overlapping="union")
    first = source("ab", task="t", name="one")
    nameless = source(["LABEL_0", "LABEL_1", "LABEL_2"], task="t", name="two")
    with pytest.raises(
        HfZipError, match="'LABEL_0' of 'models/two' says nothing; give every label"
    ):
        resolve(first, nameless, overlapping="union")
    with pytest.raises(
        HfZipError, match="'c' of 'models/two' occurs twice; give every label a name"
    ):
        resolve(first, source("acc", task="t", name="two"), overlapping="union")


def test_repeated_labels_are_told_apart_by_position_only():
    (task,) = resolve(source("aab", name="one"))
    assert task == Task("one", ("a", "a", "b"), 0, (0,), ((0, 1, 2),))
    (task,) = resolve(source("aab", name="one"), source("aab", name="two"))
    assert task.rows == ((0, 1, 2), (0, 1, 2))
    text = "'models/one' and 'models/two' share task 't' and repeat labels in different orders"
    with pytest.raises(HfZipError, match=text):
        resolve(source("aab", task="t", name="one"), source("aba", task="t", name="two"))


def test_labels_in_the_order_of_their_rows():
    assert labels_of(ViTConfig(id2label={1: "b", 0: "a"})) == ("a", "b")
    assert labels_of(ViTConfig(num_labels=2)) == ("LABEL_0", "LABEL_1")
    with pytest.raises(HfZipError, match="id2label has 2 labels but none for row 0; number them"):
        labels_of(ViTConfig(id2label={1: "a", 2: "b"}))


@pytest.mark.parametrize(
    ("labels", "nothing"),
    [
        (["LABEL_0", "LABEL_12"], True),
        (["LABEL_0", "cat"], False),
        (["LABEL_x"], False),
        (["0"], False),
    ],
)
def test_what_says_nothing(labels, nothing):
    assert says_nothing(labels) is nothing


def test_models_of_one_task_have_heads_of_one_kind():
    one, two = source("ab", task="t", name="one"), source("ab", task="t", name="two")
    two.model.config.problem_type = "regression"
    with pytest.raises(HfZipError, match="different questions, classification and regression"):
        resolve(one, two)


def test_tasks_say_what_their_heads_answer():
    score = source("a", name="score")
    assert [task.kind for task in resolve(source("xy", name="one"), score)] == [
        "classification",
        "regression",
    ]
