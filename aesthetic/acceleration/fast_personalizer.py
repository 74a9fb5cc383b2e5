"""The loop of gradient.py on a GPU: CLIP's text encoder written out, forward and backward, as CUDA graphs.

Autograd writes gradients to memory, and Adam reads them. Here the kernel that computes the gradient of a matrix takes
Adam's step with it, on a second stream, while the backward pass goes on. Under a causal mask, tokens after the end of
the text have no say in its embedding: the steps leave them out.
"""

import copy
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from ..gradient import Step
from ..models.penultimate import PenultimateTextModel
from ..personalizer import Personalizer
from . import personalization_kernels as kernels
from .cuda_graphs import Graph, LRUCache, Recorder

__all__ = ["FastPersonalizer", "Parameters", "Tape", "TrainedEncoder", "supports"]

SHORT, ALL = 32, 80  # tokens of a chunk, in multiples of 16: CLIP reads 77
CHUNKS = 10  # of a long prompt, at most
PARTS, TERMS = 8, 128  # a product is cut into 8 parts or less, of 128 terms or more


def supports(encoder: Any) -> bool:
    """Whether an encoder is CLIP's text encoder, in sizes that the kernels can compute."""
    config = encoder.config
    return (
        (config.model_type, encoder.dtype) == ("clip_text_model", torch.float32)
        and config.hidden_act in {"quick_gelu", "gelu"}
        and config.hidden_size % 64 == config.intermediate_size % 64 == 0
        and config.hidden_size / config.num_attention_heads in {16, 32, 64}
        and config.max_position_embeddings <= ALL
    )


def _named(stack: Tensor, dim: int, sizes: dict[str, int]) -> list[dict[str, Tensor]]:
    """The parts along a dimension, of these sizes, of each tensor in a stack."""
    return [dict(zip(sizes, one.split([*sizes.values()], dim), strict=True)) for one in stack]


class Parameters:
    """What is trained: the weights, or one of Adam's moments of them; `layers` has their parts by name.

    matrices:   [layers, 2 F + 4 H, H]: fc2 transposed, fc1, out_proj, and q, k, v.
    vectors:    [layers + 1, F + 9 H]: biases, and weight and bias of the norms. After the layers comes the final norm.
    embeddings: [(1 + CHUNKS) ALL, H]: of the positions, and of the tokens of one prompt.
    """

    def __init__(self, config: Any, device: torch.device) -> None:
        layers, hidden, mlp = config.num_hidden_layers, config.hidden_size, config.intermediate_size
        self.matrices = torch.zeros(layers, 2 * mlp + 4 * hidden, hidden, device=device)
        self.vectors = torch.zeros(layers + 1, mlp + 9 * hidden, device=device)
        self.embeddings = torch.zeros((1 + CHUNKS) * ALL, hidden, device=device)
        matrices = _named(self.matrices, 0, {"fc2": mlp, "fc1": mlp, "out": hidden, "qkv": 3 * hidden})
        names = {"fc1_bias": mlp, "out_bias": hidden, "qkv_bias": 3 * hidden}
        names |= {"norm1": 2 * hidden, "norm2": 2 * hidden, "fc2_bias": hidden}
        vectors = _named(self.vectors, 0, names)
        self.layers = [SimpleNamespace(**one, **other) for one, other in zip([*matrices, {}], vectors, strict=True)]

    @torch.no_grad()
    def fill(self, model: Any) -> None:
        """Copy the weights of a transformers CLIPTextModel, but for the tokens'."""
        self.embeddings.zero_()
        for weights, place in self._places(model):
            torch.cat(weights, out=place)

    @torch.no_grad()
    def write(self, model: Any) -> None:
        """Copy to a model what `fill` copies from it."""
        for weights, place in self._places(model):
            torch._foreach_copy_(weights, torch.split(place, [len(one) for one in weights]))

    def _places(self, model: Any) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Weights of a model, and where they lie, one after the other."""
        for layer, matrices, vectors in zip(model.encoder.layers, self.matrices, self.vectors[:-1], strict=True):
            attention, norm1, norm2, fc2 = layer.self_attn, layer.layer_norm1, layer.layer_norm2, layer.mlp.fc2
            linears = [layer.mlp.fc1, attention.out_proj, attention.q_proj, attention.k_proj, attention.v_proj]
            yield [fc2.weight.T, *(one.weight for one in linears)], matrices
            norms = [norm1.weight, norm1.bias, norm2.weight, norm2.bias]
            yield [*(one.bias for one in linears), *norms, fc2.bias], vectors
        yield [model.final_layer_norm.weight, model.final_layer_norm.bias], self.layers[-1].norm1
        positions = model.embeddings.position_embedding.weight
        yield [positions], self.embeddings[: len(positions)]


class Tape:
    """The activations of T tokens and their gradients, d_, as columns [T, width] for each layer.

    length: of the tokens in each chunk of the prompt that are computed, from its first one on.

    act to d_qkv are the left factors of the gradients of `matrices`, d_mlp to attention_in the right ones; d_pre to
    d_mlp are for each token the gradients of `vectors`. After the layers comes the final norm, whose d_mlp, otherwise
    unused, is the gradient of the embeddings.
    """

    def __init__(self, config: Any, chunks: int, length: int, device: torch.device) -> None:
        layers, hidden, mlp = config.num_hidden_layers, config.hidden_size, config.intermediate_size
        tokens, self.chunks, self.length = chunks * length, chunks, length
        names = {"act": mlp, "d_pre": mlp, "d_out": hidden, "d_qkv": 3 * hidden}
        names |= {"d_norm1": 2 * hidden, "d_norm2": 2 * hidden, "d_mlp": hidden}
        names |= {"mlp_in": hidden, "attended": hidden, "attention_in": hidden}
        names |= {"pre": mlp, "qkv": 3 * hidden, "h": hidden, "h_mid": hidden}
        self.all = torch.zeros(layers + 1, tokens, sum(names.values()), device=device)
        self.layers = [SimpleNamespace(**one) for one in _named(self.all, 1, names)]
        self.softmax = torch.zeros(layers, config.num_attention_heads, tokens, length, device=device)
        self.parts = torch.zeros(PARTS * tokens, hidden, device=device)
        self.d_embeds = torch.zeros(chunks, config.projection_dim, device=device)
        self.tokens, self.hidden, self.stride, self._eps = tokens, hidden, self.all.stride(1), config.layer_norm_eps
        self.graphs: dict[str, Graph[Any]] = {}
        self._quick = config.hidden_act == "quick_gelu"

    def product(self, a: Tensor, weight: Tensor, out: Any = None, bias: Any = None, pre: Any = None) -> int:
        """Without `out`, the product goes to `parts`; returns their number."""
        (width, depth), parts, columns, terms = weight.shape, 1, 16, 64
        if out is None:
            counts = (n for n in range(PARTS, 1, -1) if depth % (32 * n) == 0 and depth // n >= TERMS)
            out, parts, columns, terms = self.parts, next(counts, 1), 32, 32
        grid = (width // columns, parts, -(-self.tokens // 32))
        sizes = (self.tokens, width, depth, self.stride, out.stride(0), *weight.stride(), self._quick, columns, terms)
        kernels.product[grid](a, weight, out, bias, pre, *sizes, num_warps=2)
        return parts

    def attention(self, kernel: Any, *values: Any, kinds: int = 1) -> None:
        """Launch attend, or attend_back, whose kinds are queries, and keys with values."""
        heads, block = self.softmax.shape[1], 32 if self.length <= 32 else 128
        width = self.hidden // heads
        sizes = (self.tokens, self.length, self.hidden, self.stride, width**-0.5, width, block)
        kernel[heads, self.tokens // 16, kinds](*values, *sizes, num_warps=4 * kinds)

    def norm(self, kernel: Any, parts: int, *values: Any) -> None:
        """Launch add_norm or norm_back."""
        block = 1 << (self.hidden - 1).bit_length()  # a power of two
        kernel[(self.tokens,)](*values, self.tokens, self.hidden, self.stride, self._eps, parts, block)


class TrainedEncoder:
    """The trained weights of a CLIPTextModelWithProjection, Adam's two moments of them, and the inputs of a run."""

    def __init__(self, encoder: Any) -> None:
        self.config, device = encoder.config, encoder.device
        self._is_penultimate = isinstance(encoder.text_model, PenultimateTextModel)
        self._trained = [Parameters(self.config, device) for _ in range(3)]
        self._weights = self._trained[0].layers
        self._projection = encoder.text_projection.weight.detach()
        self._aesthetic = torch.zeros_like(self._projection[:, 0])
        self.ends = torch.zeros(CHUNKS, dtype=torch.int64, device=device)
        # Which embeddings each token adds up: [(1 + CHUNKS) ALL, CHUNKS ALL].
        self._lookup = torch.eye(ALL, device=device).repeat(1 + CHUNKS, CHUNKS)
        self.rates = torch.zeros(3, device=device)  # of the next step: see kernels._adam
        self._tapes: LRUCache[Tape] = LRUCache(3)
        self.latest: Step | None = None
        self._side: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def tape(self, chunks: int, length: int) -> Tape:
        """The memory for a prompt of so many chunks, of which `length` tokens are computed."""
        return self._tapes.get((chunks, length), lambda: Tape(self.config, chunks, length, self.rates.device))

    def fill(self, model: Any) -> None:
        """Copy the weights of a CLIPTextModel, but for the tokens'."""
        self._trained[0].fill(model)

    @torch.no_grad()
    def write(self, model: Any) -> None:
        """Copy the trained weights to a CLIPTextModel; of its tokens, to those of the run's prompt."""
        weights, (ids, rows) = self._trained[0], self._rows
        weights.write(model)
        model.embeddings.token_embedding.weight[ids] = weights.embeddings[rows]

    @torch.no_grad()
    def start(self, table: Any, ids: Tensor, ends: Tensor, aesthetic: Tensor) -> None:
        """After `fill`, set the inputs of a run.

        table: the token embedding; ids: [chunks, tokens]; ends: [chunks], the place of the end token in each;
        aesthetic: [D].
        """
        ids = functional.pad(ids, (0, ALL - ids.shape[1])).flatten()
        self._trained[0].embeddings[ALL : ALL + len(ids)].copy_(table(ids))
        first = (ids[:, None] == ids).int().argmax(1)  # a repeated token has one embedding
        self._rows = ids, ALL + first
        self._lookup[ALL : ALL + len(ids), : len(ids)].copy_(functional.one_hot(first, len(ids)).T)
        self.ends[: len(ends)].copy_(ends)
        self._aesthetic.copy_(aesthetic)

    def forward(self, tape: Tape) -> tuple[Tensor, Tensor]:
        """Similarity [chunks], and conditioning [T, H]: the last hidden state, or that before the last layer."""
        first, last, add_norm = tape.layers[0], tape.layers[-1], kernels.add_norm
        lookup, ends = self._parts(tape)
        torch.mm(lookup.T, self._trained[0].embeddings[: len(lookup)], out=first.h)
        tape.norm(add_norm, 0, first.h, None, None, self._weights[0].norm1, first.h, first.attention_in)
        for layer, softmax in enumerate(tape.softmax):
            (w, next_w), (t, next_t) = self._weights[layer : layer + 2], tape.layers[layer : layer + 2]
            tape.product(t.attention_in, w.qkv, t.qkv, w.qkv_bias)
            tape.attention(kernels.attend, t.qkv, softmax, t.attended)
            parts = tape.product(t.attended, w.out)
            tape.norm(add_norm, parts, t.h, tape.parts, w.out_bias, w.norm2, t.h_mid, t.mlp_in)
            tape.product(t.mlp_in, w.fc1, t.act, w.fc1_bias, t.pre)
            parts = tape.product(t.act, w.fc2.T)
            tape.norm(add_norm, parts, t.h_mid, tape.parts, w.fc2_bias, next_w.norm1, next_t.h, next_t.attention_in)
        embeds = last.attention_in.index_select(0, ends) @ self._projection.T
        length = embeds.norm(dim=1, keepdim=True)
        unit = embeds / length
        cosine = unit @ self._aesthetic
        # The gradient of minus the mean cosine.
        torch.div(cosine[:, None] * unit - self._aesthetic, length * tape.chunks, out=tape.d_embeds)
        return cosine, tape.layers[-2].h if self._is_penultimate else last.attention_in

    def backward(self, tape: Tape) -> None:
        """After a forward pass: Adam's step with the gradients of minus the similarity."""
        last, mlp, hidden, norm_back = tape.layers[-1], self.config.intermediate_size, tape.hidden, kernels.norm_back
        lookup, ends = self._parts(tape)
        dx = tape.parts[: tape.tokens].zero_().index_copy_(0, ends, tape.d_embeds @ self._projection)
        tape.norm(norm_back, 1, dx, last.h, self._weights[-1].norm1, None, tape.layers[-2].d_mlp, last.d_norm1)
        for layer in reversed(range(len(tape.softmax))):
            w, t, before = self._weights[layer], tape.layers[layer], tape.layers[layer - 1]
            tape.product(t.d_mlp, w.fc2, t.d_pre, None, t.pre)
            parts = tape.product(t.d_pre, w.fc1.T)
            self._update_matrices(tape, layer, 0, 2 * mlp)
            tape.norm(norm_back, parts, tape.parts, t.h_mid, w.norm2, t.d_mlp, t.d_out, t.d_norm2)
            parts, softmax = tape.product(t.d_out, w.out.T), tape.softmax[layer]
            tape.attention(kernels.attend_back, tape.parts, parts, t.qkv, softmax, t.attended, t.d_qkv, kinds=2)
            parts = tape.product(t.d_qkv, w.qkv.T)
            self._update_matrices(tape, layer, 2 * mlp, 4 * hidden)
            tape.norm(norm_back, parts, tape.parts, t.h, w.norm1, t.d_out, before.d_mlp, t.d_norm1)
        vectors = tape.all[..., mlp : 2 * mlp + 9 * hidden].sum(1)
        embeddings = lookup @ last.d_mlp
        for name, gradients in (("vectors", vectors), ("embeddings", embeddings)):
            trained, size = (getattr(one, name) for one in self._trained), gradients.numel()
            kernels.update_vectors[(size // 1024 + 1,)](gradients, *trained, self.rates, size, 1024)
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)

    def _parts(self, tape: Tape) -> tuple[Tensor, Tensor]:
        """The lookup of a tape's tokens, and where its chunks end."""
        return self._lookup[: (1 + tape.chunks) * ALL, : tape.tokens], self.ends[: tape.chunks]

    def _update_matrices(self, tape: Tape, layer: int, start: int, rows: int) -> None:
        """On the second stream, after all that was launched so far."""
        left, right, mlp = tape.layers[layer].act, tape.layers[layer].d_mlp, self.config.intermediate_size
        trained = (one.matrices[layer] for one in self._trained)
        sizes = (start, tape.hidden, mlp, tape.stride, tape.tokens, 16 if tape.tokens % 32 else 32)
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            kernels.update_matrices[tape.hidden // 32, rows // 64](left, right, *trained, self.rates, *sizes)


class _Step(Step):
    """A step that computes its conditioning when it is first read, which must be before the next step."""

    _compute: Callable[[Step], Tensor]

    def __init__(self, index: int, similarity: Tensor, compute: Callable[[Step], Tensor]) -> None:
        vars(self).update(index=index, similarity=similarity, _compute=compute)  # Step is frozen

    @cached_property
    def conditioning(self) -> Tensor:
        return self._compute(self)


class FastPersonalizer:
    """The steps of Personalizer, within 1e-5 of them. What the kernels can't compute, a Personalizer does."""

    def __init__(self, encoder: Any, recorder: Recorder) -> None:
        """encoder: as for Personalizer. recorder: captures the graphs at the first prompt of each length."""
        self._recorder, self._trained = recorder, TrainedEncoder(encoder) if supports(encoder) else None
        self._use(encoder)

    def _use(self, encoder: Any) -> None:
        self._encoder = encoder
        self._filling: Graph[None] | None = None
        self._plain = cache(partial(Personalizer, encoder))  # made when it is needed

    def _fill(self, trained: TrainedEncoder) -> None:
        if self._filling is None:
            self._filling = self._recorder.record(partial(trained.fill, self._encoder.text_model))
        self._filling.replay()

    def once(self) -> list[Callable[[], object]]:
        """Passes, to be run in any order before the first prompt, for which all kernels of a short one are compiled."""
        if self._trained is None:
            return []
        short, whole = (self._trained.tape(1, length) for length in (SHORT, ALL))
        return [
            partial(self._trained.backward, short),
            *(partial(self._trained.forward, tape) for tape in (short, whole)),
        ]

    def of(self, encoder: Any) -> Self:
        """The same for an encoder of the same shape. They share memory and graphs, so only one run at a time."""
        if encoder is self._encoder:
            return self
        other = copy.copy(self)
        other._use(encoder)
        return other

    def write(self, model: Any) -> None:
        """Copy the weights that the latest run has trained to a CLIPTextModel, for that run's prompt."""
        assert self._trained is not None
        self._trained.write(model)

    def __call__(self, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
        """Personalize the prompt `input_ids` towards `aesthetic`; arguments and steps as in `personalize`.

        The conditioning of a step is computed when it is read, which must be before the next step.
        """
        if self._trained is None or len(input_ids) > CHUNKS:
            return self._plain()(input_ids, aesthetic, steps=steps, lr=lr)
        return self._run(self._trained, input_ids, aesthetic[0], steps, lr)

    def _run(self, trained: TrainedEncoder, ids: Tensor, aesthetic: Tensor, steps: int, lr: float) -> Iterator[Step]:
        chunks, end_token = len(ids), trained.config.eos_token_id
        ends = (ids if end_token == 2 else ids == end_token).int().argmax(1)  # where transformers finds them
        whole = trained.tape(chunks, ALL)
        own = trained.tape(1, SHORT) if chunks == 1 and ends.item() < SHORT else whole
        calls = ((trained.forward, whole), (trained.forward, own), (trained.backward, own))
        entire, *pair = (self._graph(trained, *call) for call in (calls if steps else calls[:1]))

        def look() -> tuple[Tensor, Tensor]:
            similarity, hidden = entire.replay()
            return similarity.clone(), hidden.view(chunks, ALL, -1)[:, : ids.shape[1]].clone()

        def conditioning(step: Step) -> Tensor:
            if step is not trained.latest:
                raise RuntimeError("the conditioning of a step must be read before the next step")
            return look()[1]

        places = ends + ALL * torch.arange(chunks, device=ids.device)
        self._fill(trained)
        trained.start(self._encoder.get_input_embeddings(), ids, places, aesthetic)
        t = torch.arange(1, steps + 1, dtype=torch.float64)
        rates = torch.stack([lr / (1 - 0.9**t), (1 - 0.999**t) ** -0.5, (t > 1).double()], 1).float().to(ids.device)
        for index in range(steps):
            forward, backward = pair
            trained.latest = step = _Step(index, forward.replay()[0].clone(), conditioning)
            yield step
            if trained.latest is not step:
                raise RuntimeError("another run has begun, in the same memory")
            trained.rates.copy_(rates[index])
            backward.replay()
        trained.latest, (similarity, last) = None, look()
        yield Step(index=steps, similarity=similarity, conditioning=last)

    def _graph(self, trained: TrainedEncoder, action: Callable[[Tape], Any], tape: Tape) -> Graph[Any]:
        if action.__name__ not in tape.graphs:
            trained.ends.zero_()  # those of another prompt may lie outside of this tape, and a capture runs the action
            tape.graphs[action.__name__] = self._recorder.record(partial(action, tape))
        return tape.graphs[action.__name__]
