"""One random model as ours, the book's, transformers' and llama.cpp's, all with the same weights: a GPT-2 or a Llama.

Each function imports its own package, so that a process loads only the package of its contender.
"""

import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import requests
import torch

from scratchlm.data.byte_pairs import END_OF_TEXT, BytePairTokenizer, save_byte_pairs
from scratchlm.data.hub_tokenizer import byte_alphabet
from scratchlm.formats.conversion import their_tensors
from scratchlm.formats.huggingface import WEIGHT_PREFIXES, huggingface_config
from scratchlm.formats.names import HEAD, architecture
from scratchlm.model.config import GPT2_CONTEXT_LENGTH, GPT2_VOCAB_SIZE, PRETRAINED, GPTConfig, SizeName, gpt2_config
from scratchlm.model.gpt import GPTModel, build_model

SEED = 0

# Notes that rows share
AUTOCAST = " bfloat16 is autocast; llms-from-scratch has no such setting and stays in float32."
UNTIED = "its head is not tied to its embedding, so it trains 39 million more parameters."


TINY_LLAMA = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "emb_dim": 64, "head_dim": 16, "hidden_dim": 96}
SHAPES = PRETRAINED | {"tiny-llama": GPTConfig.model_validate(PRETRAINED["smollm2-135m"].model_dump() | TINY_LLAMA)}
ShapeName = SizeName | Literal["smollm2-135m", "tiny-llama"]


def our_config(shape: ShapeName) -> GPTConfig:
    if shape not in SHAPES:
        return gpt2_config(shape, GPT2_VOCAB_SIZE, GPT2_CONTEXT_LENGTH)  # type: ignore[arg-type]
    return SHAPES[shape]


def our_model(shape: ShapeName) -> GPTModel:
    return build_model(our_config(shape), SEED)


def book_settings(config: GPTConfig, vocab_size: int) -> dict[str, Any]:
    """The book's dictionary of a model's shape."""
    shape = config.model_dump(include={"context_length", "emb_dim", "n_heads", "n_layers"})
    return shape | {"vocab_size": vocab_size, "drop_rate": 0.0, "qkv_bias": True}


def book_model(size: SizeName) -> torch.nn.Module:
    """The book's GPTModel. Its head is not tied: it starts with the embedding's values and has its own gradient."""
    from llms_from_scratch.ch04 import GPTModel as BookGPT

    ours = our_model(size)
    config, weights = ours.config, ours.state_dict()
    with torch.device("meta"):
        model = BookGPT(book_settings(config, config.vocab_size))
    mask = torch.ones(config.context_length, config.context_length).triu(diagonal=1)
    theirs = {
        "tok_emb.weight": weights["token_embedding.weight"],
        "pos_emb.weight": weights["position_embedding.weight"],
        "final_norm.scale": weights["final_norm.scale"],
        "final_norm.shift": weights["final_norm.shift"],
        "out_head.weight": weights["token_embedding.weight"].clone(),
    }
    for layer in range(config.n_layers):
        block = {name.removeprefix(p): t for name, t in weights.items() if name.startswith(p := f"blocks.{layer}.")}
        found = {"att.mask": mask}
        for kind in ("weight", "bias"):
            query, key, value = (part.clone() for part in block[f"attention.qkv.{kind}"].chunk(3))
            found |= {f"att.W_query.{kind}": query, f"att.W_key.{kind}": key, f"att.W_value.{kind}": value}
            found[f"att.out_proj.{kind}"] = block[f"attention.projection.{kind}"]
            found[f"ff.layers.0.{kind}"] = block[f"feed_forward.expansion.{kind}"]
            found[f"ff.layers.2.{kind}"] = block[f"feed_forward.projection.{kind}"]
        found |= {name: block[name] for name in ("norm1.scale", "norm1.shift", "norm2.scale", "norm2.shift")}
        theirs |= {f"trf_blocks.{layer}.{name}": tensor for name, tensor in found.items()}
    model.load_state_dict(theirs, assign=True)
    return model


def huggingface_model(shape: ShapeName, precision: str = "float32") -> Any:
    """transformers' model with its defaults, except that dropout is off, as everywhere here."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    ours, dtype = our_model(shape), getattr(torch, precision)
    kind = architecture(ours.config)
    theirs = {
        name if name == HEAD.huggingface else WEIGHT_PREFIXES[kind] + name: tensor.to(dtype)
        for name, tensor in their_tensors(ours, "huggingface")
    }
    settings: dict[str, Any] = huggingface_config(ours.config, ours.config.vocab_size - 1)
    make, describe = (GPT2LMHeadModel, GPT2Config) if kind == "gpt2" else (LlamaForCausalLM, LlamaConfig)
    model = make.from_pretrained(None, config=describe(**settings), state_dict=theirs, dtype=dtype)
    assert model.config._attn_implementation == "sdpa"
    return model


def huggingface_loss(model: Any, precision: str, **batch: torch.Tensor) -> torch.Tensor:
    """The loss of transformers' model. bfloat16 uses autocast, because trained weights stay in float32."""
    device = batch["input_ids"].device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        return model(**batch).loss


class LlamaServer:
    """llama.cpp's server in this process, with the weights of `shape` from a private GGUF file.

    half: matrices in float16, else in float32. The KV cache is always float16, the default: llama.cpp has no fast
    attention for other types. slots: concurrent requests.
    """

    def __init__(self, shape: ShapeName, *, half: bool, slots: int, slot_tokens: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.hostnames = ["127.0.0.1"]
        params.n_parallel, params.n_ctx = slots, slots * slot_tokens
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.fit_params = False
        params.cache_ram_mib = 0
        params.verbosity = 0
        with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as folder:
            path = Path(folder) / "model.gguf"
            # in another process, so that memory for writing is not counted as llama.cpp's
            writing = multiprocessing.get_context("spawn").Process(target=write_gguf, args=(path, shape, half))
            writing.start()
            writing.join()
            params.model.path = str(path)
            self._server = xllamacpp.Server(params)  # maps the file, which may be deleted afterwards
        self._slots = slots

    def continued(self, prompts: Sequence[list[int]], n_tokens: int) -> list[list[int]]:
        """n_tokens greedy tokens after each prompt; all requests are sent concurrently."""
        with ThreadPoolExecutor(self._slots) as pool:
            return list(pool.map(lambda prompt: self._continued(prompt, n_tokens), prompts))

    def _continued(self, prompt: list[int], n_tokens: int) -> list[int]:
        wanted = {"prompt": prompt, "n_predict": n_tokens, "temperature": 0, "ignore_eos": True}
        reply = requests.post(
            f"{self._server.listening_address}/completion",
            json=wanted | {"cache_prompt": False, "return_tokens": True},
            timeout=600,
        )
        reply.raise_for_status()
        return reply.json()["tokens"]


def write_gguf(path: Path, shape: ShapeName, half: bool) -> None:
    """Write a GGUF file with an arbitrary vocabulary of the model's size: the prompts are token ids, so any will do."""
    from scratchlm.formats.gguf import save_gguf

    model, letters = our_model(shape), list(byte_alphabet().values())
    pairs = [(first, second) for first in letters for second in letters]
    merges = pairs[: model.config.vocab_size - len(letters) - 1]
    tokens = [*letters, *map("".join, merges), END_OF_TEXT]
    encoder = {token: token_id for token_id, token in enumerate(tokens)}
    folder = path.with_suffix(".tokenizer")
    save_byte_pairs(folder, encoder, merges)
    save_gguf(path, model, BytePairTokenizer(encoder, merges), storage="float16" if half else "float32")
