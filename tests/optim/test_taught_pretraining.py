"""pretrain.py with a UNITER beside it: what is learnt, what a run says and keeps of its teacher, going on, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file

import pretrain
from configs import cli
from data.errors import BadInput
from model.objectives.uniter_teacher import UniterTeacher
from model.original import files as conversion
from model.transformer import EncoderConfig, init_weights
from model.uniter import UniterConfig
from optim.tasks.pretraining import PretrainConfig


def convert_teacher(folder, vocab_size, seed=0, num_labels=11):
    """A folder that convert_checkpoint.py makes of a random UNITER's file."""
    torch.manual_seed(seed)
    sizes = EncoderConfig(vocab_size, 64, 1, 1, 48, max_position_embeddings=80)
    teacher = UniterTeacher(UniterConfig(sizes, 32, num_labels))
    init_weights(teacher, 0.2)
    tensors = {name.replace("bert.", "uniter.").removeprefix("heads."): t for name, t in teacher.state_dict().items()}
    tensors |= {"itm_output.weight": torch.zeros(2, 64), "itm_output.bias": torch.zeros(2)}
    tensors["cls.predictions.decoder.weight"] = tensors["uniter.embeddings.word_embeddings.weight"]
    tensors["feat_regress.weight"] = tensors["uniter.img_embeddings.img_linear.weight"]
    file = folder.with_suffix(".pt")
    torch.save(tensors, file)
    conversion.to_ours(file, folder)
    return folder


@pytest.fixture(scope="module")
def vocab_size(pretrained):
    return json.loads((pretrained / "last/config.json").read_text())["txt"]["vocab_size"]


@pytest.fixture
def train(small_world, tmp_path):
    """Pre-train in this process → (run folder, lines of metrics)."""

    def run(*words, name="run"):
        fixed = ["--config", small_world / "pretrain.yaml", "--num-steps", 12, "--valid-every", 4, "--keep-checkpoints", 9]
        words = [*fixed, "--out", tmp_path / name, *words]
        pretrain.main(cli.parse(PretrainConfig, [str(word) for word in words]))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return tmp_path / name, [json.loads(line) for line in lines]

    return run


def losses(lines):
    return [{k: v for k, v in line.items() if k.startswith("train/")} for line in lines if "lr" in line]


def test_a_teacher_is_learnt_from_named_and_not_saved(train, vocab_size, tmp_path, capsys):
    folder = convert_teacher(tmp_path / "uniter", vocab_size)
    words = ["--teacher.checkpoint", folder, "--teacher.weight", 3]
    run, lines = train(*words, name="taught")
    plain, others = train(name="plain")
    with_teacher, without = losses(lines), losses(others)
    assert [each.keys() for each in with_teacher] == [each.keys() for each in without]
    first = next(n for n, each in enumerate(with_teacher) if "cmr" not in next(iter(each)))
    assert with_teacher[:first] == without[:first]  # cmr has no teacher
    name = next(iter(with_teacher[first]))
    assert with_teacher[first][name] > without[first][name] + 1e-3
    assert first + 1 == len(with_teacher) or with_teacher[first + 1] != without[first + 1]

    teacher = UniterTeacher.from_pretrained(folder)
    assert json.loads((run / "run.json").read_text())["teacher"] == f"{folder}, weights {teacher.fingerprint}"
    assert torch.load(run / "last/training.pt", weights_only=True)["data"]["training teacher"] == teacher.fingerprint
    for file in ("model.safetensors", "heads.safetensors"):
        assert load_file(run / "last" / file).keys() == load_file(plain / "last" / file).keys()

    def go_on_from(step):
        (run / "last").unlink()
        (run / "last").symlink_to(f"checkpoints/step-{step:08d}")
        capsys.readouterr()
        return train(*words, name="taught")[0] / "last/model.safetensors", capsys.readouterr().out

    expected = load_file(run / "last/model.safetensors")
    path, shown = go_on_from(8)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(path).items())
    assert "the data are those of the checkpoint" in shown

    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    convert_teacher(folder, vocab_size, seed=1)
    assert "not what they were when the checkpoint was saved: training teacher; training goes on" in go_on_from(8)[1]


def test_teachers_that_do_not_fit_are_one_clear_line(train, vocab_size, tmp_path, small_world):
    folder = convert_teacher(tmp_path / "other", vocab_size + 7)
    with pytest.raises(BadInput, match=rf"{folder}: knows {vocab_size + 7} words, the model {vocab_size}; a teacher must"):
        train("--teacher.checkpoint", folder)
    with pytest.raises(BadInput, match=r"uniter/config\.json: no such file; a checkpoint folder was expected"):
        train("--teacher.checkpoint", tmp_path / "uniter")
    corpus = [{"name": "a", "captions": "db/train", "regions": "regions", "tasks": {"cmr": 1}}]
    with pytest.raises(BadInput, match="a UNITER teaches vmlm, mrfr, mrckl, mrc, mlm, and no corpus has any of these tasks"):
        train("--teacher.checkpoint", folder, "--data", json.dumps(corpus))
