"""The fastest form of the model for decoding: packed weights, prompts without padding, and lean steps.

Surprising: with one or a few rows, a product takes as long as reading its weights. oneDNN reads weights that are
stored in the blocks of its kernels at 44 GB/s, but a plain matrix at 17 (one row, float32, LOG.md). torch has no public
function for it, so this module calls two private ones of torch.ops.mkldnn. The result equals that of the plain layers
except for the order of sums (tests/unit/fast/test_decoding.py).

Pays: with dense caches, GELU inside the product and prompts read without padding, 16 prompts of 64 tokens and 64 new
ones (124M) went from 404 to 535 tokens/s in float32 and from 654 to 839 in bfloat16 (LOG.md). A step of one row in
bfloat16 went from 15.5 to 11.7 ms with SmolLM2-135M, whose 30 layers had looked up positions and angles one by one,
and by another 6 % without the calls of modules.
"""

import copy
import math
import weakref
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from scratchlm.arithmetic.functions import softmax
from scratchlm.arithmetic.integers import CHUNK
from scratchlm.arithmetic.layers import Linear
from scratchlm.arithmetic.mode import is_exact
from scratchlm.fast.compiler import padded_length
from scratchlm.fast.cuda_graphs import CapturedFunction
from scratchlm.fast.static_cache import BufferPool, StaticCache
from scratchlm.fast.varlen import VarlenLayout, embed, last_token_states
from scratchlm.model.cache import KVCache, LayerCache
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GELU, FeedForward, GPTModel, TransformerBlock
from scratchlm.model.variants import RMSNorm, sines_and_cosines

FEW_ROWS = 32  # for more, a product of matrices is faster
CAPTURED_TOKENS = 4096  # of prompts; with more, a GPU computes longer than this process launches


class DecodingGPT(GPTModel):
    """A GPTModel for decoding. Prompts have no padding, and the last block runs only at their last token; on a GPU,
    short prompts are padded and captured instead.

    In a step, each row of a cache gets one token. What all layers share is looked up once: positions, angles, the mask.
    """

    parts: list[tuple[nn.Module, ...]]
    buffer_pool: BufferPool  # of a GPU, like prompts
    prompts: CapturedFunction[tuple[Tensor, Tensor, Tensor]]

    def new_cache(self, n_rows: int) -> KVCache:
        on_gpu = self.token_embedding.weight.device.type == "cuda" and not is_exact()
        return StaticCache(self.config, n_rows, self.buffer_pool) if on_gpu else super().new_cache(n_rows)

    def hidden_states(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        if cache is None or token_ids.shape[1] > 1 or is_exact() or token_ids.device.type != "cpu":
            return super().hidden_states(token_ids, cache)
        self.check_length(1 + max(cache.lengths))
        step = Step(self.config, cache)
        x = self.embed(token_ids, step.positions).squeeze(1)  # (B, C): products would remove a third dimension each
        for (norm1, qkv, projection, norm2, feed_forward), layer in zip(self.parts, cache.layers, strict=True):
            x = x + projection(step.attend(qkv(norm1(x)), layer))
            x = x + feed_forward(norm2(x))
        return self.final_norm(x)[:, None]

    def next_logits(self, rows: Sequence[Sequence[int]], cache: KVCache | None = None) -> Tensor:
        lengths = [len(row) for row in rows]
        device = self.token_embedding.weight.device
        n_tokens = padded_length(max(lengths), self.config.context_length)
        if isinstance(cache, StaticCache) and len(rows) * n_tokens <= CAPTURED_TOKENS:
            cache.lengths = lengths
            return self._captured_logits(rows, n_tokens, cache)
        layout = VarlenLayout(torch.tensor(lengths, device=device))
        token_ids = torch.tensor([token_id for row in rows for token_id in row], device=device)  # (N,)
        logits = self.head(last_token_states(self, embed(self, token_ids, layout), layout, cache=cache))
        if cache:
            cache.lengths = lengths
        return logits

    def _captured_logits(self, rows: Sequence[Sequence[int]], n_tokens: int, cache: KVCache) -> Tensor:
        """next_logits on a GPU, padded to n_tokens: for few tokens, launching takes longer than computing."""
        padded = torch.zeros(len(rows), n_tokens, dtype=torch.int64)
        for row, token_ids in zip(padded, rows, strict=True):
            row[: len(token_ids)] = torch.tensor(token_ids)
        logits, keys, values = self.prompts(padded, torch.tensor([len(row) - 1 for row in rows]))
        for layer, key, value in zip(cache.layers, keys.clone(), values.clone(), strict=True):
            layer.keys, layer.values = key, value
        return logits.clone()

    def _read_prompts(self, token_ids: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits after each row's last token, (B, V), and the keys and values of all layers, (L, B, K, T, D) each."""
        x, found = self.embed(token_ids, torch.arange(token_ids.shape[1], device=ends.device).expand_as(token_ids)), []
        block: TransformerBlock
        for block in self.blocks:  # type: ignore[assignment]
            attention = block.attention
            query, key, value = attention.split_heads(attention.qkv(block.norm1(x)))
            x = x + attention.projection(attention.attend(query, key, value))
            x = x + block.feed_forward(block.norm2(x))
            found.append((key, value))
        last = self.final_norm(x[torch.arange(len(ends), device=ends.device), ends])
        keys, values = (torch.stack(of_layers) for of_layers in zip(*found, strict=True))
        return self.head(last), keys, values


def for_inference(model: GPTModel) -> DecodingGPT:
    """A twin of the model for `generate`, in evaluation mode; made in about the time of three decoding steps.

    It shares the model's parameters, except for the matrices that pack_weights copies: later changes of these do not
    affect it.
    """
    # The parameters are in deepcopy's memo of copied objects, so they are shared and not copied
    twin: DecodingGPT = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})  # type: ignore[assignment]
    twin.__class__ = DecodingGPT  # the same attributes, with another next_logits
    pack_weights(twin)
    twin.buffer_pool = BufferPool()
    itself: DecodingGPT = weakref.proxy(twin)  # type: ignore[assignment]  # no cycle: weights are freed with the twin
    read = partial(DecodingGPT._read_prompts, itself)
    twin.prompts = CapturedFunction(read, model.token_embedding.weight.device)
    twin.parts = [_parts(block) for block in twin.blocks]  # type: ignore[arg-type]
    return twin.eval()


def _parts(block: TransformerBlock) -> tuple[nn.Module, ...]:
    """In the order of their use: looking them up by name in each step takes time."""
    return block.norm1, block.attention.qkv, block.attention.projection, block.norm2, block.feed_forward


class Step:
    """The next token of each of B rows: its place in the cache, what it sees, and its attention in each layer."""

    def __init__(self, config: GPTConfig, cache: KVCache) -> None:
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.positions = cache.advance(1, torch.device("cpu"))  # (B, 1)
        self.slot = cache.lengths[0] - 1 if len(cache.lengths) == 1 else None  # of a single row, which needs no mask
        self.mask: Tensor | None = None  # (B, 1, 1, S), 0 or -inf, made by the first layer
        self.waves: tuple[Tensor, Tensor] | None = None  # sine and cosine for both halves of a head, (B, 1, D)
        if config.position == "rope":
            shape, cpu = (config.context_length, config.head_dim, config.rope_base), torch.device("cpu")
            waves = sines_and_cosines(*shape, cpu, config.rope_scaling)
            sine, cosine = (wave[self.positions] for wave in waves)
            self.waves = torch.cat((-sine, sine), dim=-1), torch.cat((cosine, cosine), dim=-1)
            self.swapped = torch.arange(config.head_dim).roll(config.head_dim // 2)  # the other element of each pair

    def attend(self, qkv: Tensor, layer: LayerCache) -> Tensor:
        """MultiHeadAttention between its two products: (B, (H + 2 K) D) -> (B, H D)."""
        H, K = self.n_heads, self.n_kv_heads
        heads = qkv.view(len(qkv), H + 2 * K, -1)
        turned, value = heads.narrow(1, 0, H + K), heads.narrow(1, H + K, K)
        if self.waves is not None:
            sine, cosine = self.waves
            x = turned.to(torch.promote_types(qkv.dtype, torch.float32))
            turned = torch.addcmul(x * cosine, x.index_select(-1, self.swapped), sine).to(qkv.dtype)
        query, key = turned.narrow(1, 0, H), turned.narrow(1, H, K)
        query = query.reshape(len(qkv), K, H // K, -1)  # the heads of a group as queries of one head
        keys, values, mask = self._extend(layer, key, value)
        if mask is None and query.dtype == torch.bfloat16:  # only here is torch's fused kernel the faster form
            return functional.scaled_dot_product_attention(query, keys, values).view(len(qkv), -1)
        scores = (query / math.sqrt(query.shape[-1])) @ keys.transpose(-2, -1)  # (B, K, H / K, S)
        weights = softmax(scores if mask is None else scores + mask)
        return (weights @ values).view(len(qkv), -1)

    def _extend(self, layer: LayerCache, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """LayerCache.extend for (B, K, D) each; the mask is to be added to scores, and is None for a single row."""
        keys, values = layer.keys, layer.values
        assert keys is not None and values is not None  # the prompts are in it
        if self.slot is None or self.slot >= keys.shape[2]:
            keys, values, mask = layer.extend(key[:, :, None], value[:, :, None])
            if self.mask is None:
                self.mask = torch.zeros_like(mask, dtype=key.dtype).masked_fill(~mask, -torch.inf)
            return keys, values, self.mask
        keys.select(2, self.slot).copy_(key)
        values.select(2, self.slot).copy_(value)
        return keys.narrow(2, 0, self.slot + 1), values.narrow(2, 0, self.slot + 1), None


class PackedLinear(nn.Module):
    """A linear layer with its weights converted once, without gradients. (…, C) -> (…, C')."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.dtype = dtype
        self.activation = "none"  # or "gelu", in its tanh approximation

    def __call__(self, x: Tensor) -> Tensor:  # instead of forward: nn.Module's own call takes a microsecond, 211 times
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, self.activation, [], "tanh")


class SingleRMSNorm(RMSNorm):
    """RMSNorm with fewer operations for a single position: (1, C) -> (1, C)."""

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() != len(self.scale):
            return self.forward(x)
        row = x.view(-1)
        return (x * (1 / math.sqrt(float(row @ row) / len(row) + self.epsilon))) * self.scale


class CastLinear(nn.Module):
    """The same for a GPU: the weights are converted once, not at each call. (…, C) -> (…, C')."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = linear.weight.detach().to(dtype)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


class ExactPackedLinear(nn.Module):
    """The same in precision `exact`: the weight's integers are found once. Without gradients. (…, C) -> (…, C')."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        from scratchlm.arithmetic import fused  # takes half a second, and only this precision needs it

        self.linear, self.fused = linear, fused
        self.packed = fused.pack(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if len(rows) > FEW_ROWS:
            return self.linear(x)
        return self.fused.packed_linear(rows, self.packed, self.linear.bias).view(*x.shape[:-1], -1)


def pack_weights(model: GPTModel) -> None:
    """Put a packed layer in place of every linear layer, with GELU inside it where one follows.

    The layers compute in the precision of the surrounding autocast. Does nothing where oneDNN has no kernels. On a GPU,
    linear layers become CastLinear under autocast.
    """
    device = model.token_embedding.weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    use_onednn = device == "cpu" and not is_exact() and torch.backends.mkldnn.is_available()
    if use_onednn and dtype == torch.bfloat16:
        use_onednn = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for path, module in [*model.named_modules()]:
        if type(module) is RMSNorm and use_onednn:
            module.__class__ = SingleRMSNorm
        elif type(module) is Linear and use_onednn:
            model.set_submodule(path, PackedLinear(module, dtype))
        elif type(module) is Linear and is_exact() and device == "cpu" and module.in_features <= CHUNK:
            model.set_submodule(path, ExactPackedLinear(module))
        elif type(module) is Linear and device != "cpu" and dtype != torch.float32:
            model.set_submodule(path, CastLinear(module, dtype))
    for module in model.modules():
        if not isinstance(module, FeedForward) or not isinstance(module.expansion, PackedLinear):
            continue
        if isinstance(module.activation, GELU):
            module.expansion.activation, module.activation = "gelu", nn.Identity()  # type: ignore[assignment]
