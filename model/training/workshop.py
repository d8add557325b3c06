"""What stands before training begins, for a run, a search or a comparison alike: body, vocabulary, corpus, n-grams."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from model.bag import GramBag
from model.encoder import PackedEncoder, PaddedEncoder
from model.errors import DataError
from model.experts import ExpertsConfig
from model.network import LinearColumns, Network, linear_weights
from model.scoring import Floats, Prepared
from model.text import TextCodec, TextSpec
from model.training.channel import linear_channel
from model.training.corpus import Corpus, build_corpus, read_by, space_texts
from model.training.examples import read_corpus
from model.training.export import encode
from model.training.foreign import cut, load_foreign
from model.training.lora import add_lora
from model.training.made_from import file_digests
from model.training.recipe import Recipe
from model.training.trials import check_trials
from model.training.valid import ValidRows, valid_rows
from model.training.vocabulary import prune
from model.training.warmstart import warm_start

BAG_HEAD_SCALE = 1.5  # a head begins as its linear machine, in units of that machine's spread


class FirstRows:
    """What a body says of texts before it is trained, for every network that begins with it: a search or a comparison
    encodes them once, not once a network. ``encode``: a network and texts to rows [n, width and more]."""

    def __init__(self, encode: Callable[[Network, list[Prepared]], Floats] = encode) -> None:
        self._encode = encode
        self._known: dict[bytes, Floats] = {}

    def of(self, network: Network, prepared: Sequence[Prepared]) -> Floats:
        """Pooled rows [n, width] of texts by a network that is not trained yet."""
        keys = [text.ids.tobytes() for text in prepared]
        new = {key: text for key, text in zip(keys, prepared, strict=True) if key not in self._known}
        if new:
            rows = self._encode(network, list(new.values()))[:, : network.encoder.config.hidden]
            self._known.update(zip(new, rows, strict=True))
        return np.stack([self._known[key] for key in keys])


@dataclass(frozen=True)
class Workshop:
    """Everything made from recipe and data. ``values`` [rows, columns]: the n-gram columns, out of fold; ``columns``:
    those of each head. ``first``: of ``encoder``, as it is. ``valid``: rows that are watched on the way, where there is
    a tensorboard. ``spread``: texts for the vector space."""

    encoder: PackedEncoder | PaddedEncoder
    codec: TextCodec
    tokenizer_json: str
    corpus: Corpus
    bag: GramBag | None
    values: Floats | None
    columns: dict[str, LinearColumns]
    valid: list[ValidRows] = field(default_factory=list)
    spread: list[str] = field(default_factory=list)
    first: FirstRows = field(default_factory=FirstRows)


def furnish(recipe: Recipe, data: Path, out: Path, console: Console, *, resume: bool = False) -> Workshop:
    """Read and check the data and the valid files, cut the body, number the texts, fit the n-gram channel (or read it
    back from ``out``). ``resume``: what lies there must be of this recipe and these data. Raises ModelError."""
    if not recipe.body or not recipe.heads:
        raise DataError(
            f"recipe {recipe.name}: to train a network it must name `body` and `heads`; a click head alone is put onto"
            " an artifact with --onto"
        )
    files = file_digests(recipe, data)
    rows = read_corpus(recipe, data, console.log)
    spread = space_texts(recipe.space, data)  # now, so that a bad file is told before training
    encoder, codec, tokenizer_json = _body(recipe, [example.text for part in rows for example in part] + spread)
    corpus = replace(build_corpus(recipe, rows, codec, out / "augmented"), files=files)
    check_trials(recipe, corpus.heads, data, console.log)
    console.log(f"{len(corpus.prepared)} rows, {sum(p.tokens for p in corpus.prepared)} tokens, {len(rows)} data sets")
    bag, values, columns = linear_channel(recipe, corpus, out, console, resume=resume)
    watched = recipe.training.tensorboard and recipe.training.valid_every
    valid = valid_rows(recipe, corpus.heads, data, codec) if watched else []
    return Workshop(encoder, codec, tokenizer_json, corpus, bag, values, columns, valid, spread)


def with_body(shop: Workshop, body: str, max_tokens: int) -> Workshop:
    """The same rows before another pretrained body, whole and without n-grams. Raises ModelError."""
    foreign = load_foreign(body)
    _check_length(foreign.encoder, body, max_tokens)
    codec = TextCodec(foreign.tokenizer_json, TextSpec(max_tokens, lower=foreign.lower))
    corpus, valid = read_by(shop.corpus, codec), [rows.read_by(codec) for rows in shop.valid]
    return Workshop(foreign.encoder, codec, foreign.tokenizer_json, corpus, None, None, {}, valid)


def new_network(recipe: Recipe, shop: Workshop, *, warm: bool) -> tuple[Network, dict[str, Tensor]]:
    """A network to train, on the device at hand, and the weights of the linear machines in it. The workshop's body is
    copied, not changed. ``warm``: fit the heads' first weights, which a checkpoint would overwrite."""
    training = recipe.training
    torch.manual_seed(recipe.seed)  # the heads' first weights
    experts = ExpertsConfig.of(
        training.experts, training.experts_width, training.experts_shared, training.experts_own, shop.corpus.heads
    )
    heads = {name: len(labels) for name, labels in shop.corpus.heads.items()}
    network = Network(copy.deepcopy(shop.encoder), copy.deepcopy(shop.bag), heads, experts)
    network.to(device := torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    machines = linear_weights(network, shop.columns)
    if recipe.warm_rows and warm:
        warm_start(network, shop.corpus, recipe.warm_rows, recipe.seed, lambda texts: shop.first.of(network, texts))
    with torch.no_grad():
        for head, machine in machines.items():  # training starts at the linear machine, not below it
            network.head(head).weight += BAG_HEAD_SCALE * machine.to(device)
    add_lora(network, training.lora, frozen_layers=training.frozen_layers, seed=recipe.seed)
    return network.to(device), machines  # with its adapters


def _body(recipe: Recipe, texts: Sequence[str]) -> tuple[PackedEncoder | PaddedEncoder, TextCodec, str]:
    """The pretrained encoder, cut to the vocabulary that the texts need and the layers that the recipe asks for. Raises
    DataError for texts longer than it reads."""
    foreign = load_foreign(recipe.body)
    spec = TextSpec.from_dict(recipe.text.to_dict() | {"lower": recipe.text.lower or foreign.lower})
    encoder, tokenizer_json, kept = foreign.encoder, foreign.tokenizer_json, list[int]()
    _check_length(encoder, recipe.body, spec.max_tokens)
    if recipe.vocabulary:
        tokenizer_json, kept = prune(tokenizer_json, texts, recipe.vocabulary, lower=spec.lower)
    if kept or recipe.layers:
        encoder = cut(encoder, rows=kept, positions=spec.max_tokens, layers=recipe.layers)
    return encoder, TextCodec(tokenizer_json, spec), tokenizer_json


def _check_length(encoder: PackedEncoder | PaddedEncoder, body: str, max_tokens: int) -> None:
    longest = encoder.tokens_max
    if longest is not None and max_tokens > longest:
        raise DataError(f"text.max_tokens: body {body} reads {longest} tokens at most, not {max_tokens}")
