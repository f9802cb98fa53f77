"""Models are mapped, compared and merged tensor by tensor: the same bytes as by loading them whole, in constant memory."""

import filecmp
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import ModelError
from tests.conftest import FAMILIES, tiny_model
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.merging import MERGES, embedders
from trainer.merging.embedders import Merging
from trainer.merging.merge import Recipe

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tokenizer(english):
    return FAMILIES["wordpiece"](english)


def random_model(tokenizer, seed: int):
    model = tiny_model(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def folders(tokenizer, tmp_path, request) -> list[str]:
    """A language model, as `pretrain` writes it, and embedders of the same sizes; in the dtype of the test."""
    dtype = getattr(request, "param", torch.float32)
    random_model(tokenizer, 0).to(dtype).save_pretrained(tmp_path / "0")
    tokenizer.save_pretrained(tmp_path / "0")
    for seed in (1, 2):
        model = random_model(tokenizer, seed).bert.to(dtype)
        Embedder(model, tokenizer, EmbedderSpec(pooling="cls", max_length=24)).save(str(tmp_path / str(seed)))
    return [str(tmp_path / str(number)) for number in range(3)]


def merge(folders: list[str], output: str, method: str = "uniform") -> None:
    models = [embedders.open_mapped(folder) for folder in folders]
    with embedders.scratch(folders[-1]) as target:
        merging = Merging(models=models, base=None, target=target)
        merging.fill(MERGES[method].config()(merging.ask(lambda embedder: 0.0)))
        target.save(output)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("folders", [torch.float32, torch.bfloat16, torch.float16], indirect=True)
def test_the_files_are_those_of_models_that_are_loaded_whole(folders: list[str], count: int, tmp_path: Path) -> None:
    loaded = [Embedder.load(folder) for folder in folders[:count]]
    states = [one.model.state_dict() for one in loaded]
    averages = {name: torch.stack([state[name].double() for state in states]).mean(dim=0).float() for name in states[0]}
    loaded[-1].model.load_state_dict(averages)
    loaded[-1].save(str(tmp_path / "whole"))
    merge(folders[:count], str(tmp_path / "streamed"))
    compared = filecmp.cmpfiles(
        tmp_path / "whole",
        tmp_path / "streamed",
        [path.name for path in (tmp_path / "whole").iterdir() if path.is_file()],
        False,
    )
    assert "model.safetensors" in compared[0]
    assert compared[1:] == ([], [])


@pytest.mark.parametrize("folders", [torch.bfloat16], indirect=True)
def test_ranges_of_values_beside_the_weights_do_not_decide_their_type(folders: list[str]) -> None:
    calibrated = Embedder.load(folders[1], torch.bfloat16)
    calibrated.calibrate([[2, 9, 3], [2, 7, 3]])
    calibrated.save(folders[1])
    opened = embedders.open_mapped(folders[1])
    assert opened.calibrations
    assert opened.model.dtype == torch.bfloat16


def test_sharded_folders_are_read_and_written(folders: list[str], tmp_path: Path, monkeypatch) -> None:
    merge(folders[1:], str(tmp_path / "one"))
    for folder in folders[1:]:
        embedder = Embedder.load(folder)
        with monkeypatch.context() as patch:
            patch.setattr("trainer.embedder.MAX_SHARD_SIZE", "40KB")
            embedder.save(f"{folder}-parts")
    monkeypatch.setattr("trainer.embedder.MAX_SHARD_SIZE", "40KB")
    merge([f"{folder}-parts" for folder in folders[1:]], str(tmp_path / "many"))
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    whole, parts = (Embedder.load(str(tmp_path / name)).model.state_dict() for name in ("one", "many"))
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_tied_weights_are_merged_once_and_whole_numbers_are_the_first_models(folders: list[str]) -> None:
    models = [embedders.open_mapped(folder) for folder in folders]
    for place, embedder in enumerate([*models]):
        embedder.model.register_buffer("numbers", torch.full((2,), place))
        embedder.model.register_parameter("tied", embedder.model.get_input_embeddings().weight)
    with embedders.scratch(folders[-1]) as target:
        target.model.register_buffer("numbers", torch.zeros(2, dtype=torch.int64))
        target.model.register_parameter("tied", target.model.get_input_embeddings().weight)
        seen = []
        Merging(models=models, base=None, target=target).fill(
            Recipe(merge=lambda column: (seen.append(column.models[0].shape), column.models[0])[1])
        )
        Merging(models=models[1:], base=models[2], target=target).fill(Recipe(merge=lambda column: column.models[0]))
        assert target.model.numbers.tolist() == [2, 2]
    embeddings = tuple(models[0].model.get_input_embeddings().weight.shape)
    assert [tuple(shape) for shape in seen].count(embeddings) == 1


def test_models_that_do_not_fit_are_refused_with_their_differences(folders: list[str], tokenizer, english) -> None:
    models = {folder: embedders.open_mapped(folder) for folder in folders}
    embedders.check_alike(models)
    last = models[folders[2]]
    last.tokenizer = FAMILIES["byte_level"](english)
    last.model.embeddings.word_embeddings.weight = torch.nn.Parameter(torch.zeros(7, 32))
    last.model.embeddings.LayerNorm.bias = torch.nn.Parameter(torch.zeros(32, dtype=torch.int64), requires_grad=False)
    del last.model.encoder.layer[1].attention
    with pytest.raises(ModelError) as refused:
        embedders.check_alike(models)
    text = str(refused.value)
    assert text.startswith(f"{folders[0]}: the other models differ from it in\n  its tokenizer ({folders[2]})\n")
    assert "embeddings.word_embeddings.weight: (7, 32), not (" in text
    assert "embeddings.LayerNorm.bias: torch.int64, not torch.float32" in text
    assert "encoder.layer.1.attention.output.dense.weight, which is missing" in text
    for layer in (0, 1):
        last.model.encoder.layer[layer] = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"\n  and \d+ more\n") as refused:
        embedders.check_alike(models)
    assert str(refused.value).count("\n  ") == embedders.LISTED + 1


MEASURED = """
import sys, torch
from transformers import BertConfig, BertModel
from tests.conftest import wordpiece
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.merging import MERGES, embedders

def memory():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(("RssAnon", "RssShmem"))) / 1024

folder, count, method = sys.argv[1], int(sys.argv[2]), sys.argv[3]
folders = [f"{folder}/{number}" for number in range(count)]
models = [embedders.open_mapped(one) for one in folders]
before, peak = memory(), 0.0
with embedders.scratch(folders[-1]) as target:
    settings = MERGES[method].config()
    merging = embedders.Merging(models=models, base=models[0] if settings.needs.base else None, target=target)
    def progress(done, total):
        global peak
        peak = max(peak, memory())
    recipe = settings(merging.ask(lambda embedder: 0.0))
    merging.fill(recipe, progress)
    target.save(f"{folder}/merged-{count}-{method}")
    peak = max(peak, memory())
print(peak - before)
"""


@pytest.mark.parametrize("method", ["uniform", "task_arithmetic"])
def test_memory_does_not_grow_with_the_number_of_models(method: str, english, tmp_path: Path) -> None:
    """Models of 100 MB with tensors of at most 4 MB; what is mapped belongs to the cache and is not counted."""
    from transformers import BertConfig, BertModel

    tokenizer = FAMILIES["wordpiece"](english)
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes), add_pooling_layer=False)
    for number in range(6):
        Embedder(model, tokenizer, EmbedderSpec()).save(str(tmp_path / str(number)))
    assert (tmp_path / "0" / "model.safetensors").stat().st_size > 100e6
    peaks = {}
    for count in (2, 6):
        command = [sys.executable, "-c", MEASURED, str(tmp_path), str(count), method]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        peaks[count] = float(done.stdout.splitlines()[-1])
    print(peaks)
    assert peaks[6] < peaks[2] + 10, peaks
    assert peaks[6] < 100, peaks  # less than one model


def test_a_merge_has_the_widths_and_exits_of_all_embedders(folders: list[str]) -> None:
    both = folders[1:]
    assert [embedders.is_embedder(folder) for folder in folders] == [False, True, True]
    specs = [EmbedderSpec(dimensions=(16, 8), layers=(1,), max_length=24), EmbedderSpec(dimensions=(8,), max_length=30)]
    assert embedders.common_spec(dict(zip(both, specs, strict=True))) == EmbedderSpec(dimensions=(8,), max_length=30)
    assert embedders.common_spec({both[0]: specs[0]}) == specs[0]


@pytest.mark.parametrize("other", [{"pooling": "max"}, {"prompts": {"query": "q: "}}, {"template": "echo"}])
def test_embedders_that_read_texts_differently_are_refused(other: dict) -> None:
    with pytest.raises(ModelError, match=rf"^a: its {next(iter(other))} is .* and that of b is .* read and pool texts alike"):
        embedders.common_spec({"a": EmbedderSpec(**other), "b": EmbedderSpec()})
