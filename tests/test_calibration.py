import io
import logging

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetNotFoundError
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from hf_zip.calibration import from_memory as read_memory
from hf_zip.calibration import load_inputs, load_labelled
from hf_zip.data import draw, split_column
from hf_zip.errors import HfZipError
from hf_zip.images import ImageReader, PreparedImages, StoredPixels
from hf_zip.recipe import CalibrationSpec, EvaluationSpec
from tests.models import processor

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def picture(value, size=(8, 8), mode="RGB"):
    return Image.new(mode, size, value if mode in ("L", "1", "I;16", "I", "F") else (value,) * 3)


def shade(pixels):
    """The grey value that an image of one colour had before the processor."""
    return round(float((pixels.mean() * 0.5 + 0.5) * 255))


def shades(inputs):
    return [shade(item["pixel_values"]) for item in inputs]


def table(values=range(6), labels=None, **extra):
    columns = {"image": [picture(v) for v in values], **extra}
    features = {"image": ImageFeature(), **{name: Value("string") for name in extra}}
    if labels is not None:
        columns["label"] = labels
        features["label"] = ClassLabel(names=list(CLASSES))
    return Dataset.from_dict(columns, features=Features(features))


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "pets.parquet"
    table(range(0, 120, 20), labels=[0, 1, 2, 0, 1, 2]).to_parquet(path)
    return str(path)


def unlabelled(*data, **options):
    image_processor = options.pop("processor", processor())
    shape = {key: options.pop(key) for key in ("num_channels", "image_size") if key in options}
    seed = options.pop("seed", 0)
    spec = CalibrationSpec(data=data, **options)
    return load_inputs(spec, ImageReader(image_processor, **shape), seed)


def labelled(data, labels=CLASSES, task="pets", seed=0, **options):
    spec = EvaluationSpec(task=task, data=str(data), **options)
    return load_labelled(spec, ImageReader(processor()), tuple(labels), seed)


def from_memory(data, image_processor=None, **shape):
    return read_memory(data, ImageReader(image_processor, **shape))


# Where data come from.


def image_folder(path, splits=("train",)):
    for split in splits:
        for label, value in (("cat", 10), ("dog", 200)):
            (path / split / label).mkdir(parents=True)
            for i in range(2):
                picture(value + i).save(path / split / label / f"{i}.png")
    return path


def test_a_file_of_every_kind(tmp_path, parquet):
    assert shades(unlabelled(parquet)) == list(range(0, 120, 20))
    for value in (30, 40):
        picture(value).save(tmp_path / f"{value}.png")
    (tmp_path / "a.csv").write_text("file,note\n30.png,x\n40.png,y\n")
    assert shades(unlabelled(str(tmp_path / "a.csv"))) == [30, 40]
    line = '{"pixels": [[5, 5], [5, 5]], "label": 1}\n'
    (tmp_path / "a.jsonl").write_text(2 * line)
    assert shades(unlabelled(str(tmp_path / "a.jsonl"))) == [5, 5]
    (tmp_path / "a.json").write_text(line)
    assert shades(unlabelled(str(tmp_path / "a.json"))) == [5]


def test_a_glob_takes_all_files_in_order(tmp_path, monkeypatch):
    for name, value in (("b", 50), ("a", 20)):
        (tmp_path / "deep" / name).mkdir(parents=True)
        table([value]).to_parquet(tmp_path / "deep" / name / "x.parquet")
    assert shades(unlabelled(str(tmp_path / "**" / "*.parquet"))) == [20, 50]
    monkeypatch.chdir(tmp_path)
    assert shades(unlabelled("deep/*/x.parquet")) == [20, 50]


def test_an_image_folder(tmp_path):
    folder = image_folder(tmp_path / "pets", ("train", "test"))
    inputs = unlabelled(str(folder))
    assert shades(inputs) == [10, 11, 200, 201]
    assert inputs.description["split"] == "train"
    found = labelled(folder)
    assert found.description["split"] == "test"
    assert [item["labels"] for item in found] == [0, 0, 1, 1]


def test_a_saved_data_set(tmp_path):
    table([10, 20]).save_to_disk(tmp_path / "one")
    assert shades(unlabelled(str(tmp_path / "one"))) == [10, 20]
    assert unlabelled(str(tmp_path / "one")).description["split"] == "all"
    DatasetDict(train=table([10]), test=table([20])).save_to_disk(tmp_path / "two")
    assert shades(unlabelled(str(tmp_path / "two"))) == [10]
    assert shades(unlabelled(str(tmp_path / "two"), split="test")) == [20]


def test_a_hub_id(monkeypatch, tmp_path):
    calls = []
    commit = "c0ffee" + 34 * "0"
    folder = tmp_path / "org___pets" / "default" / "0.0.0" / commit
    table([10, 20]).save_to_disk(folder)

    def load(name, revision=None):
        calls.append((name, revision))
        return DatasetDict(train=datasets.load_from_disk(folder, keep_in_memory=False))

    monkeypatch.setattr(datasets, "load_dataset", load)
    inputs = unlabelled("org/pets@v1:image", "org/pets")
    assert calls == [("org/pets", "v1"), ("org/pets", None)]
    assert [part["revision"] for part in inputs.description["parts"]] == [commit] * 2
    assert [part["fingerprint"] for part in inputs.description["parts"]] == [None] * 2


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("org/images", ("org/images", None)),
        ("org/images@main:picture", ("org/images@main", "picture")),
        ("a/b.parquet:x_1", ("a/b.parquet", "x_1")),
        ("a:b/c.csv", ("a:b/c.csv", None)),
        ("a.csv:1", ("a.csv:1", None)),
        ("hf://x", ("hf://x", None)),
        (":x", (":x", None)),
    ],
)
def test_the_column_is_a_trailing_name(data, parts):
    assert split_column(data) == parts


def test_a_path_that_exists_is_taken_as_it_is(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert split_column(str(tmp_path / "a:b")) == (str(tmp_path / "a:b"), None)


@pytest.mark.parametrize("data", ["./pets", "pets", "/no/where", "no/such/folder"])
def test_data_that_do_not_exist_make_no_network_call(data, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("called"))
    with pytest.raises(HfZipError, match=f"data '{data}' do not exist; check the path, or give a"):
        unlabelled(data)


def test_a_hub_out_of_reach():
    with pytest.raises(
        HfZipError, match=r"'org/pets' are neither .* cache, .*Couldn't reach.*Chec"
    ):
        unlabelled("org/pets")


def test_a_hub_id_that_does_not_exist(monkeypatch):
    def refuse(*_, **__):
        raise DatasetNotFoundError("no")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        HfZipError, match="'org/pets@v1' are neither a file or folder nor a data se"
    ):
        unlabelled("org/pets@v1")


def test_a_hub_data_set_that_cannot_be_read(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("Config name is missing.\nPlease pick one")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(HfZipError, match="'org/pets' cannot be read: Config name is missing; give"):
        unlabelled("org/pets")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(HfZipError, match=r"a.parquet' cannot be read: .*; give a Hub id"):
        unlabelled(str(tmp_path / "a.parquet"))
    for name, text in (("a.csv", ""), ("b.csv", "image,label\n"), ("a.jsonl", ""), ("a.json", "{")):
        (tmp_path / name).write_text(text)
        with pytest.raises(HfZipError, match=rf"{name}' cannot be read: (?!.*generating)\S+"):
            unlabelled(str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(HfZipError, match=r"empty' cannot be read: .*any data files"):
        unlabelled(str(tmp_path / "empty"))
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(HfZipError, match=r"is a .md file; give a Hub id"):
        unlabelled(str(tmp_path / "notes.md"))
    with pytest.raises(HfZipError, match=r"\*.parquet' match no file; check the path"):
        unlabelled(str(tmp_path / "none" / "*.parquet"))


def test_no_data_and_no_rows(tmp_path):
    with pytest.raises(HfZipError, match="names no data; list data sets under 'data'"):
        unlabelled()
    table([1]).filter(lambda _: False).save_to_disk(tmp_path / "none")
    with pytest.raises(HfZipError, match="none' have no rows in split 'all'; give some"):
        unlabelled(str(tmp_path / "none"))


# Splits.


@pytest.mark.parametrize(
    ("splits", "calibration", "evaluation"),
    [
        (("train", "test"), "train", "test"),
        (("test", "validation"), None, "test"),
        (("validation", "train"), "train", "validation"),
        (("extra",), "extra", "extra"),
        (("a", "b"), None, None),
    ],
)
def test_splits_taken_when_none_is_named(tmp_path, splits, calibration, evaluation):
    content = {split: table([10], labels=[0]) for split in splits}
    DatasetDict(content).save_to_disk(tmp_path / "data")
    data = str(tmp_path / "data")
    for load, expected in ((unlabelled, calibration), (labelled, evaluation)):
        if expected is None:
            with pytest.raises(HfZipError, match=f"have the splits {', '.join(splits)}, none of"):
                load(data)
        else:
            assert load(data).description["split"] == expected


def test_an_unknown_split(parquet):
    with pytest.raises(HfZipError, match=r"unknown split of data .* 'trian'. Did you mean 'train'"):
        unlabelled(parquet, split="trian")


# Columns.


def two_images(tmp_path):
    columns = {"left": [picture(10)], "right": [picture(20)], "note": ["x"]}
    features = {"left": ImageFeature(), "right": ImageFeature(), "note": Value("string")}
    path = tmp_path / "two.parquet"
    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)
    return str(path)


def test_the_column_is_named_with_the_data_or_for_all(tmp_path):
    data = two_images(tmp_path)
    assert shades(unlabelled(f"{data}:right")) == [20]
    assert shades(unlabelled(data, column="left")) == [10]
    assert shades(unlabelled(f"{data}:right", data, column="left")) == [20, 10]


def test_columns_that_are_ambiguous_absent_or_unknown(tmp_path):
    data = two_images(tmp_path)
    text = r"have 2 columns that hold images, which the models take; name one as .*two.parquet:COLUMN. Columns: left "
    with pytest.raises(HfZipError, match=text + r"\(Image\), right \(Image\), note \(string\)"):
        unlabelled(data)
    Dataset.from_dict({"text": ["a"], "n": [1]}).to_parquet(tmp_path / "text.parquet")
    text = r"have no columns that hold images, which .* Columns: text \(string\), n \(int64\)"
    with pytest.raises(HfZipError, match=text):
        unlabelled(str(tmp_path / "text.parquet"))
    with pytest.raises(HfZipError, match=r"unknown column of data .* 'rihgt'. Did you mean 'right"):
        unlabelled(f"{data}:rihgt")


def encoded(value):
    buffer = io.BytesIO()
    picture(value).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "values",
    [
        [encoded(40), encoded(50)],
        [{"bytes": encoded(40), "path": None}, {"bytes": encoded(50), "path": "x.png"}],
        np.stack([np.full((4, 4), v) for v in (40, 50)]).tolist(),
        np.stack([np.full((4, 5, 3), v) for v in (40, 50)]).tolist(),
        np.stack([np.full((3, 4, 5), v) for v in (40, 50)]).tolist(),
        np.stack([np.full((4, 5, 1), v) for v in (40, 50)]).tolist(),
    ],
)
def test_values_that_are_images(tmp_path, values):
    Dataset.from_dict({"n": [1, 2], "x": values}).to_parquet(tmp_path / "x.parquet")
    assert shades(unlabelled(str(tmp_path / "x.parquet"))) == [40, 50]


def test_values_that_are_not_images(tmp_path):
    columns = {
        "image": [[[1, 2], [3, 4]]],
        "ragged": [[[1], [2, 3]]],
        "words": [[["a", "b"], ["c", "d"]]],
        "numbers": [[1, 2, 3]],
        "deep": [[[[[1]]]]],
        "struct": [{"bytes": b"", "size": 3}],
        "text": ["a.png is no path"],
        "number": [3.0],
        "nothing": [None],
    }
    data = Dataset.from_dict(columns)
    data.to_parquet(tmp_path / "x.parquet")
    assert unlabelled(str(tmp_path / "x.parquet")).description["column"] == "image"
    assert from_memory(data.with_format("numpy"), processor()).description["column"] == "image"


def test_arrays_keep_their_orientation(tmp_path):
    pixels = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    values = [{"x": pixels.tolist()}]
    Dataset.from_list(values).to_parquet(tmp_path / "x.parquet")
    raw = processor(do_resize=False, do_normalize=False, rescale_factor=1.0)
    found = unlabelled(str(tmp_path / "x.parquet"), processor=raw)[0]["pixel_values"]
    assert torch.equal(found, torch.from_numpy(pixels).permute(2, 0, 1).float())


# Rows.


def test_equal_parts_of_every_data_set(tmp_path):
    names = []
    for i, count in enumerate((10, 10, 2)):
        names.append(str(tmp_path / f"{i}.parquet"))
        table(range(100 * i, 100 * i + count) if i < 2 else [250, 251]).to_parquet(names[-1])
    inputs = unlabelled(*names, samples=11)
    assert len(inputs) == 4 + 4 + 2
    found = shades(inputs)
    assert [value // 100 for value in found] == [0] * 4 + [1] * 4 + [2] * 2
    assert found == sorted(found)
    assert inputs.description["rows"] == 10
    assert inputs.description["data"] == names
    assert [part["rows"] for part in inputs.description["parts"]] == [4, 4, 2]
    assert [part["rows_available"] for part in inputs.description["parts"]] == [10, 10, 2]
    assert shades(inputs) == found == shades(unlabelled(*names, samples=11))
    assert shades(unlabelled(*names, samples=11, seed=1)) != found
    assert [value - 100 for value in found[4:8]] != found[:4]  # each data set draws for itself
    assert shades(unlabelled(names[0], samples=4)) == found[:4]


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (5, 5), (6, 5)])
def test_draws(count, expected, caplog):
    with caplog.at_level(logging.INFO, logger="hf_zip"):
        rows = draw(count, 5, (3,), "x")
    assert len(rows) == len({*rows}) == expected
    assert rows == sorted(rows)
    assert all(0 <= row < 5 for row in rows)
    assert ("data 'x' have 5 of 6 rows asked for; all used" in caplog.text) == (count == 6)


def test_draws_depend_on_the_seed_and_nothing_else():
    assert draw(5, 1000, (0, 0), "a") == draw(5, 1000, (0, 0), "b")
    assert draw(5, 1000, (0, 0), "a") != draw(5, 1000, (0, 1), "a")
    assert draw(5, 1000, (0, 0), "a") != draw(5, 1000, (1, 0), "a")


def test_fewer_samples_than_data_sets(parquet):
    with pytest.raises(HfZipError, match="1 samples cannot be taken from 2 data sets; ask for at"):
        unlabelled(parquet, parquet, samples=1)


def test_the_description(parquet):
    description = unlabelled(parquet, samples=4).description
    assert description.pop("fingerprint")
    assert description == {
        "data": parquet,
        "split": None,
        "column": "image",
        "revision": None,
        "rows": 4,
        "rows_available": 6,
    }


def test_batches(parquet):
    (batch,) = DataLoader(labelled(parquet), batch_size=8)
    assert batch["pixel_values"].shape == (6, 3, 8, 8)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(labelled(parquet)[-1]["pixel_values"], batch["pixel_values"][-1])
    with pytest.raises(IndexError):
        labelled(parquet)[6]


# Images.


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_colour_and_grey(mode):
    image = picture(255).convert(mode)
    colour = from_memory([image], processor())
    assert colour[0]["pixel_values"].shape == (3, 8, 8)
    assert shades(colour) == [255]
    grey = from_memory([image], processor(image_mean=[0.5], image_std=[0.5]))
    assert grey[0]["pixel_values"].shape == (1, 8, 8)
    assert shades(grey) == [255]
    grey = from_memory([image], processor(image_mean=0.5, image_std=0.5), num_channels=1)
    assert grey[0]["pixel_values"].shape == (1, 8, 8)


def test_images_are_turned_as_their_camera_noted():
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = image.getexif()
    exif[0x0112] = 6  # turned clockwise
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    raw = processor(do_resize=False, do_normalize=False, rescale_factor=1.0)
    images = PreparedImages([buffer.getvalue()], [0], raw, "x")
    assert images[0]["pixel_values"][0].tolist() == [[3.0, 0.0], [4.0, 1.0], [5.0, 2.0]]


def test_images_are_prepared_when_asked_for():
    class Counting:
        asked = 0

        def __call__(self, **options):
            self.asked += 1
            return processor()(**options)

    counting = Counting()
    inputs = from_memory([picture(value) for value in range(5)], counting)
    assert counting.asked == 1
    assert shade(inputs[3]["pixel_values"]) == 3
    assert counting.asked == 2


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits(mode):
    with pytest.raises(
        HfZipError, match=f"row 0 of data 'in memory' is an image of mode {mode}, w"
    ):
        from_memory([picture(300, mode=mode)], processor())


def test_images_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_text("file\nnone.png\n")
    with pytest.raises(
        HfZipError, match=r"row 0 of data .*a.csv' is no readable image: .*none.png"
    ):
        unlabelled(str(tmp_path / "a.csv"))
    with pytest.raises(HfZipError, match="row 0 of data 'x' is no readable image: cannot identify"):
        PreparedImages([b"nothing"], [0], processor(), "x")
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    cut = PreparedImages([encoded(3), buffer.getvalue()[:1000]], [0, 1], processor(), "x")
    with pytest.raises(HfZipError, match="row 1 of data 'x' is no readable image"):
        cut[1]


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4)),
        np.full((4, 4), 256),
        np.full((4, 4), -1),
        np.zeros((4,), dtype=int),
        np.zeros((4, 4, 5), dtype=int),
        np.zeros((0, 4), dtype=int),
        None,
    ],
)
def test_arrays_that_are_no_images(pixels):
    with pytest.raises(HfZipError, match=r"it holds .*; pixels should be whole numbers from 0 to"):
        PreparedImages([pixels], [0], processor(), "x")


def test_images_need_an_image_processor():
    with pytest.raises(HfZipError, match="hold images, but the models have no image processor; sa"):
        from_memory([picture(0)])
    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    with pytest.raises(HfZipError, match="the models have a tokenizer and no image processor"):
        from_memory([picture(0)], PreTrainedTokenizerFast(tokenizer_object=words))


def test_other_numbers_of_channels():
    with pytest.raises(HfZipError, match="images have 1 or 3 channels, not 4"):
        from_memory([picture(0)], processor(), num_channels=4)
    with pytest.raises(HfZipError, match=r"cannot prepare an image of 1 channels: mean must have"):
        from_memory([picture(0)], processor(), num_channels=1)


def test_sizes_that_the_models_do_not_take():
    as_it_is = processor(do_resize=False)
    images = [picture(0), picture(0, size=(9, 7))]
    text = r"row 1 of data 'in memory' has pixel values of shape \(3, 7, 9\), but should have \("
    with pytest.raises(HfZipError, match=text + r"3, 8, 8\); use an image processor that resizes"):
        from_memory(images, as_it_is)[1]
    text = r"row 0 .* has pixel values of shape \(3, 8, 8\), but should have \(3, 16, 16\)"
    with pytest.raises(HfZipError, match=text):
        from_memory(images, processor(), image_size=16)
    with pytest.raises(HfZipError, match=r"should have \(3, 7, 9\)"):
        from_memory(images, as_it_is, image_size=(7, 9))
    assert len(from_memory(images[1:], as_it_is, image_size=(7, 9))) == 1


def test_data_sets_of_different_sizes(tmp_path):
    for size in (8, 9):
        picture(0, size=(size, size)).save(tmp_path / f"{size}.png")
        (tmp_path / f"{size}.csv").write_text(f"file\n{size}.png\n")
    names = [str(tmp_path / f"{size}.csv") for size in (8, 9)]
    with pytest.raises(
        HfZipError, match=r"the first input of data set 1 has pixel values of shape"
    ):
        unlabelled(*names, processor=processor(do_resize=False))


# Labels.


def with_labels(tmp_path, labels, feature=None):
    columns = {"image": [picture(i) for i in range(len(labels))], "label": labels}
    features = {"image": ImageFeature(), "label": feature} if feature else None
    data = Dataset.from_dict(columns, features=Features(features) if features else None)
    data = data.cast_column("image", ImageFeature())
    path = tmp_path / "labelled.parquet"
    data.to_parquet(path)
    return path


NAMES = ClassLabel(names=["cat", "dog", "owl"])
DEFAULT = ["pets/LABEL_0", "pets/LABEL_1", "pets/LABEL_2"]


@pytest.mark.parametrize(
    ("labels", "feature", "own", "expected", "by"),
    [
        ([0, 1, 2], NAMES, ["owl", "dog", "cat"], [2, 1, 0], "name"),
        (["dog", "cat"], None, CLASSES, [1, 0], "name"),
        ([0, 2], NAMES, ["owl", "cat"], [1, 0], "name"),  # dog is a name that no row has
        ([0, 1], NAMES, ["pets/cat", "pets/dog", "owl"], [0, 1], "name"),
        (["cat", "pets/dog"], None, ["pets/cat", "pets/dog"], [0, 1], "name"),
        ([2, 0], NAMES, DEFAULT, [2, 0], "position"),
        (["LABEL_1"], None, DEFAULT, [1], "name"),
        ([1, 0], ClassLabel(names=["0", "1"]), ["cat", "dog"], [1, 0], "position"),
        ([1, 0], ClassLabel(names=["LABEL_0", "LABEL_1"]), ["cat", "dog"], [1, 0], "position"),
        ([2, 0, 1], None, CLASSES, [2, 0, 1], "position"),
        ([7, 3], None, ["3", "7"], [1, 0], "name"),
        ([True, False], None, ["no", "yes"], [1, 0], "position"),
        ([2, 0, 1], NAMES, ["cat", "cat", "owl"], [2, 0, 1], "position"),
    ],
)
def test_labels_by_name_else_by_position(tmp_path, labels, feature, own, expected, by):
    found = labelled(with_labels(tmp_path, labels, feature), own)
    assert [item["labels"] for item in found] == expected
    assert found.description["labels_matched_by"] == by
    assert found.description["label_column"] == "label"


@pytest.mark.parametrize(
    ("labels", "feature", "own", "text"),
    [
        (["cat", "cow", "cow"], None, CLASSES, r"1 labels of .* unknown to task 'pets': 'cow'. It"),
        ([0, 1, 2], NAMES, ["cat", "dog"], "1 labels .*: 'owl'. It knows 2: 'cat', 'dog'. Leave"),
        (
            [0, 1],
            NAMES,
            DEFAULT[:2],
            r"2 labels .*: 'cat', 'dog'. It knows 2: 'LABEL_0', 'LABEL_1'",
        ),
        ([0, 3], None, CLASSES, "2 labels .*: '0', '3'"),
        ([0, 1], None, ["1", "2"], "1 labels .*: '0'"),
        ([0, 1], ClassLabel(names=["0", "1"]), CLASSES, "2 labels"),
        (list("abcdef"), None, CLASSES, r"'a', 'b', 'c', 'd', …. It knows 3: 'cat', 'dog', 'owl'"),
        (["0"], None, CLASSES, "1 labels .*: '0'"),
    ],
)
def test_labels_that_the_model_does_not_know(tmp_path, labels, feature, own, text):
    with pytest.raises(HfZipError, match=text):
        labelled(with_labels(tmp_path, labels, feature), own)


def test_repeated_names_cannot_be_matched(tmp_path):
    with pytest.raises(
        HfZipError, match=r"by name, because task 'pets' has some names twice: 'cat'"
    ):
        labelled(with_labels(tmp_path, ["cat"]), ["cat", "cat"])


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([0, None, -1], NAMES),
        (["cat", None, None], None),
        ([0, -1, -1], Value("int64")),
    ],
)
def test_rows_without_labels(tmp_path, labels, feature):
    text = (
        r"2 of 3 rows of data .* have no label in column 'label' \(None or -1; the first is row 1"
    )
    with pytest.raises(HfZipError, match=text):
        labelled(with_labels(tmp_path, labels, feature))


def test_all_rows_are_checked_not_only_those_drawn(tmp_path):
    data = with_labels(tmp_path, ["cat"] * 50 + ["cow"])
    with pytest.raises(HfZipError, match="unknown to task 'pets': 'cow'"):
        labelled(data, samples=1)


def test_labels_follow_the_rows_drawn(tmp_path):
    data = with_labels(tmp_path, [i % 3 for i in range(30)])
    found = labelled(data, samples=7, seed=3)
    assert len(found) == 7
    assert [item["labels"] for item in found] == [value % 3 for value in shades(found)]
    assert len(labelled(data)) == 30


def test_the_label_column(tmp_path):
    rows = table([1, 2], labels=[0, 1], breed=["x", "y"])
    for name, renamed in (("labels", "labels"), ("kind", "kind")):
        rows.rename_column("label", renamed).to_parquet(tmp_path / f"{name}.parquet")
        assert labelled(tmp_path / f"{name}.parquet").description["label_column"] == renamed
    rows.to_parquet(tmp_path / "a.parquet")
    assert len(labelled(tmp_path / "a.parquet", ["y", "x"], label_column="breed")) == 2
    with pytest.raises(
        HfZipError, match=r"unknown column of data .* 'bread'. Did you mean 'breed'"
    ):
        labelled(tmp_path / "a.parquet", label_column="bread")
    with pytest.raises(
        HfZipError, match=r"column 'image' of data .* holds Image; labels should be"
    ):
        labelled(tmp_path / "a.parquet", label_column="image")
    rows = rows.add_column("second", [0, 1]).cast_column("second", NAMES)
    rows.rename_column("label", "first").to_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        HfZipError, match=r"no column 'label' and 2 class-label columns; .* Columns"
    ):
        labelled(tmp_path / "b.parquet")


@pytest.mark.parametrize("feature", [Value("float32"), List(Value("int64"))])
def test_columns_that_hold_no_labels(tmp_path, feature):
    labels = [[1], [2]] if isinstance(feature, List) else [0.5, 1.0]
    with pytest.raises(HfZipError, match=r"column 'label' of data .* labels should be class label"):
        labelled(with_labels(tmp_path, labels, feature))


# In memory.


def test_tensors_and_dicts_in_memory():
    pixels = torch.randn(4, 3, 8, 8)
    for data in (pixels, [{"pixel_values": x, "labels": 1} for x in pixels]):
        inputs = from_memory(data)
        assert len(inputs) == 4
        assert all(torch.equal(inputs[i]["pixel_values"], pixels[i]) for i in range(4))
        assert list(inputs[0]) == ["pixel_values"]
        assert inputs.description == {"data": "in memory", "rows": 4}
    assert from_memory(pixels.double())[0]["pixel_values"].dtype == torch.float64


def test_data_sets_in_memory():
    inputs = from_memory(table([30, 10]), processor())
    assert shades(inputs) == [30, 10]
    assert (inputs.description["data"], inputs.description["column"]) == ("in memory", "image")
    assert inputs.description["fingerprint"]
    assert inputs.description["split"] is None
    drawn = Dataset.from_dict({"image": [picture(1)]}, split="test")
    assert from_memory(drawn, processor()).description["split"] == "test"
    assert from_memory(inputs) is inputs
    stored = Dataset.from_dict({"pixel_values": torch.randn(2, 3, 4, 4).tolist(), "image": [1, 2]})
    assert from_memory(stored)[1]["pixel_values"].shape == (3, 4, 4)
    assert from_memory(stored.with_format("torch")).description["column"] == "pixel_values"
    assert shades(from_memory((picture(3), picture(4)), processor())) == [3, 4]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (3, "the data are a int, but should be a datasets.Dataset, a tensor of pixel"),
        (iter([1]), "the data are a list_iterator, but should be"),
        (
            DatasetDict(train=Dataset.from_dict({"a": [1]})),
            "DatasetDict; give one of its splits: t",
        ),
        ([], "the data in memory have no rows; give at least one"),
        (torch.zeros(0, 3, 8, 8), "the data in memory have no rows"),
        ([picture(0), 3], "the data are a list of Image, int, but should be"),
        ([{"labels": 3}], "the data are a list of dict, but should be"),
        (
            torch.zeros(2, 3, dtype=torch.uint8),
            r"input 0 are uint8 of shape \(3,\); they should be",
        ),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"input 0 are uint8 of shape \(3, 8, 8\)"),
        ([{"pixel_values": torch.zeros(1, 3, 8, 8)}], r"are float32 of shape \(1, 3, 8, 8\)"),
    ],
)
def test_data_in_memory_of_another_kind(data, text):
    with pytest.raises(HfZipError, match=text):
        from_memory(data, processor())


def test_stored_pixels_of_another_size():
    values = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]
    with pytest.raises(
        HfZipError, match=r"input 1 has pixel values of shape \(3, 8, 9\), but shoul"
    ):
        StoredPixels(values)[1]
    with pytest.raises(HfZipError, match=r"input 0 .* should have \('any', 16, 16\)"):
        from_memory(torch.zeros(2, 3, 8, 8), image_size=16)
