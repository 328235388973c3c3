"""The Space of a merge: what is written, and what its app answers (gradio only draws it)."""

import importlib.util
import json
import sys

import pytest
from huggingface_hub import RepoCard
from PIL import Image
from transformers import BertForMaskedLM, BertForTokenClassification, BertModel

import hf_zip
from hf_zip.errors import HfZipError
from hf_zip.merged import load_merge
from scripts.make_space import GRADIO, make_space
from tests.models import processor, vit
from tests.texts import WORDS, bert, sentences, tokenizer

TEXT = f"{WORDS[0]} {WORDS[1]}"


@pytest.fixture
def app(tmp_path, monkeypatch):
    """Loads the app of a merge, with the model from the merge's folder."""

    def load(merge):
        make_space(merge, "me/zip", tmp_path / "space")
        monkeypatch.setenv("MODEL", str(merge))
        spec = importlib.util.spec_from_file_location("space_app", tmp_path / "space" / "app.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert "gradio" not in sys.modules
        return module

    return load


def save(folder, models, prepared):
    for name, model in models.items():
        model.save_pretrained(folder / name)
        prepared.save_pretrained(folder / name)
    return [folder / name for name in models]


@pytest.mark.parametrize("options", [{}, {"stop_at": 1}])
def test_an_image_is_answered_by_every_task(tmp_path, app, options):
    models = {"pets": vit(seed=1, names=["cat", "dog"]), "trees": vit(seed=2, names=["oak", "elm"])}
    sources = save(tmp_path, models, processor())
    hf_zip.merge(sources, method="average", force=True, out=tmp_path / "merge", **options)
    space = app(tmp_path / "merge")
    image = Image.new("L", (9, 8), 200)
    pets, trees = space.answers(*space.load(), image)
    model, prepared = load_merge(tmp_path / "merge")
    expected = model(**prepared(image.convert("RGB"), return_tensors="pt")).logits[0]
    assert list(pets) == ["cat", "dog"]
    assert list(pets.values()) == pytest.approx(expected[:2].softmax(-1).tolist())
    assert list(trees.values()) == pytest.approx(expected[2:].softmax(-1).tolist())
    assert space.answers(model, prepared, None) == [None, None]


def test_a_text_is_answered_by_every_kind_of_head(tmp_path, app):
    models = {
        "topic": bert(3, 1),
        "tags": bert(2, 2, names=["O", "B"], cls=BertForTokenClassification),
        "score": bert(1, 3, names=["stars"], problem_type="regression"),
        "moods": bert(2, 4, names=["glad", "sad"], problem_type="multi_label_classification"),
    }
    sources = save(tmp_path, models, tokenizer())
    options = {"calibration": sentences(64), "force": True, "progress": False}
    hf_zip.merge(sources, method="average", out=tmp_path / "merge", **options)
    space = app(tmp_path / "merge")
    assert space.SETTINGS["apart"]
    assert space.SETTINGS["trust_remote_code"]
    model, prepared = load_merge(tmp_path / "merge")
    topic, tags, score, moods = space.answers(model, prepared, TEXT)
    outputs = model(**prepared(TEXT, return_tensors="pt")).outputs
    assert list(topic.values()) == pytest.approx(outputs["topic"].logits[0].softmax(-1).tolist())
    assert [word for word, _ in tags] == [WORDS[0], WORDS[1]]  # not [CLS] and [SEP]
    best = outputs["tags"].logits[0].argmax(-1)[1:-1]
    assert [label for _, label in tags] == [["O", "B"][int(i)] for i in best]
    assert score == {"stars": pytest.approx(outputs["score"].logits[0, 0].item())}
    assert list(moods.values()) == pytest.approx(outputs["moods"].logits[0].sigmoid().tolist())
    assert space.answers(model, prepared, "") == [None] * 4


def test_the_files_of_a_space(tmp_path):
    sources = save(tmp_path, {"pets": vit(seed=1, names=["cat", "dog"])}, processor())
    hf_zip.merge(sources, method="average", out=tmp_path / "merge")
    make_space(tmp_path / "merge", "me/zip", tmp_path / "space", "v2")
    data = RepoCard.load(tmp_path / "space" / "README.md").data.to_dict()
    assert (data["sdk"], data["sdk_version"], data["app_file"]) == ("gradio", GRADIO, "app.py")
    assert data["models"] == ["me/zip"]
    settings = json.loads((tmp_path / "space" / "space.json").read_text())
    assert (settings["model"], settings["revision"]) == ("me/zip", "v2")
    assert settings["auto_class"] == "AutoModelForImageClassification"
    report = (tmp_path / "space" / "report.md").read_text()
    assert report.startswith("# zip")
    assert 'from_pretrained("me/zip", revision="v2")' in report
    files = {path.name: path.read_text() for path in (tmp_path / "space").iterdir()}
    assert "transformers==" in files["requirements.txt"]
    assert str(tmp_path) not in "".join(files.values())


def test_what_the_app_cannot_show_is_refused(tmp_path):
    with pytest.raises(HfZipError, match="give a folder of a merge"):
        make_space(tmp_path, "me/zip", tmp_path / "space")
    vit(names=["cat"]).save_pretrained(tmp_path / "bare")
    hf_zip.merge([tmp_path / "bare"], method="average", out=tmp_path / "unprepared")
    with pytest.raises(HfZipError, match="no image processor or tokenizer was saved"):
        make_space(tmp_path / "unprepared", "me/zip", tmp_path / "space")
    words = bert(cls=BertForMaskedLM)
    hf_zip.merge([words], method="average", out=tmp_path / "words", processor=tokenizer())
    with pytest.raises(HfZipError, match="the merge answers masked-lm, and the app shows class"):
        make_space(tmp_path / "words", "me/zip", tmp_path / "space")
    hf_zip.merge(
        [bert(cls=BertModel)], method="average", out=tmp_path / "trunk", processor=tokenizer()
    )
    with pytest.raises(HfZipError, match="the merge answers nothing"):
        make_space(tmp_path / "trunk", "me/zip", tmp_path / "space")
    assert not (tmp_path / "space").exists()
