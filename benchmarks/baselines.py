"""One random GPT-2 as our model, the book's, transformers' and llama.cpp's, all with the same weights.

Each function imports its own package, so that a process loads only the package of its contender.
"""

import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
import torch

from scratchlm.data.byte_pairs import END_OF_TEXT, BytePairTokenizer, byte_alphabet, save_byte_pairs
from scratchlm.formats.gguf import save_gguf
from scratchlm.formats.huggingface import huggingface_config
from scratchlm.formats.names import tensor_names
from scratchlm.model.config import GPT2_CONTEXT_LENGTH, GPT2_VOCAB_SIZE, GPTConfig, SizeName, gpt2_config
from scratchlm.model.gpt import GPTModel, build_model

SEED = 0

# Notes that rows share
AUTOCAST = " bfloat16 is autocast; llms-from-scratch has no such setting and stays in float32."
UNTIED = "its head is not tied to its embedding, so it trains 39 million more parameters."


def our_config(size: SizeName, vocab_size: int = GPT2_VOCAB_SIZE) -> GPTConfig:
    return gpt2_config(size, vocab_size, GPT2_CONTEXT_LENGTH)


def our_model(size: SizeName, vocab_size: int = GPT2_VOCAB_SIZE) -> GPTModel:
    return build_model(our_config(size, vocab_size), SEED)


def book_model(size: SizeName, vocab_size: int = GPT2_VOCAB_SIZE) -> torch.nn.Module:
    """The book's GPTModel. Its head is not tied: it starts with the embedding's values and has its own gradient."""
    from llms_from_scratch.ch04 import GPTModel as BookGPT

    ours = our_model(size, vocab_size)
    config, weights = ours.config, ours.state_dict()
    with torch.device("meta"):
        model = BookGPT(
            {
                "vocab_size": config.vocab_size, "context_length": config.context_length, "emb_dim": config.emb_dim,
                "n_heads": config.n_heads, "n_layers": config.n_layers, "drop_rate": 0.0, "qkv_bias": True,
            }
        )  # fmt: skip
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


def huggingface_model(size: SizeName, precision: str = "float32", vocab_size: int = GPT2_VOCAB_SIZE) -> Any:
    """transformers' GPT2LMHeadModel with its defaults, except that dropout is off, as everywhere here."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    ours = our_model(size, vocab_size)
    weights, dtype = ours.state_dict(), getattr(torch, precision)
    theirs = {
        f"transformer.{name.huggingface}": (weights[name.ours].T if name.linear else weights[name.ours])
        .to(dtype)
        .contiguous()
        for name in tensor_names(ours.config.n_layers)
    }
    config = GPT2Config(**huggingface_config(ours.config, vocab_size - 1))  # type: ignore[arg-type]
    model = GPT2LMHeadModel.from_pretrained(None, config=config, state_dict=theirs, dtype=dtype)
    assert model.config._attn_implementation == "sdpa"
    return model


def huggingface_loss(model: Any, precision: str, **batch: torch.Tensor) -> torch.Tensor:
    """The loss of transformers' model. bfloat16 uses autocast, because trained weights stay in float32."""
    device = batch["input_ids"].device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        return model(**batch).loss


class LlamaServer:
    """llama.cpp's server in this process, with the weights of `size` from a private GGUF file.

    half: matrices in float16, else in float32. The KV cache is always float16, the default: llama.cpp has no fast
    attention for other types. slots: concurrent requests.
    """

    def __init__(self, size: SizeName, *, half: bool, slots: int, slot_tokens: int) -> None:
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
            writing = multiprocessing.get_context("spawn").Process(target=write_gguf, args=(path, size, half))
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


def write_gguf(path: Path, size: SizeName, half: bool) -> None:
    """Write a GGUF file with an arbitrary vocabulary of GPT-2's size: the prompts are token ids, so any will do."""
    letters = list(byte_alphabet().values())
    merges = [(first, second) for first in letters for second in letters][: GPT2_VOCAB_SIZE - len(letters) - 1]
    tokens = [*letters, *map("".join, merges), END_OF_TEXT]
    encoder = {token: token_id for token_id, token in enumerate(tokens)}
    folder = path.with_suffix(".tokenizer")
    save_byte_pairs(folder, encoder, merges)
    save_gguf(path, our_model(size), BytePairTokenizer(encoder, merges), half=half)
