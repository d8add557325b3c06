"""Translation with any sequence-to-sequence model of transformers, for back-translation (``model/training/extra.py``).

For Chinese and English, ``Helsinki-NLP/opus-mt-zh-en`` and ``opus-mt-en-zh`` (Marian, Apache-2.0 / CC BY 4.0) are small
enough for a processor; their tokenizer needs the package sentencepiece.
"""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError

from model.errors import ModelError

TOKENS_MAX = 256  # of a text and of its translation
BATCH = 32


class Translator:
    """One direction of translation: greedy, so the same texts give the same translations."""

    def __init__(self, source: str, languages: Sequence[str] = (), *, device: str = "auto") -> None:
        """Load from a model folder or hub name. ``languages``: codes of the source and target language, for models of
        many languages (NLLB, M2M100, mBART). Raises ModelError when the model cannot be had or lacks the language."""
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source)
            model: Any = AutoModelForSeq2SeqLM.from_pretrained(source)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"translation model {source!r} cannot be loaded ({_short(error)}); give a folder with config.json, "
                "tokenizer and weights of a sequence-to-sequence model, or a hub name while the network is there; "
                "Marian folders need `pip install sentencepiece`"
            ) from error
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(device).eval()
        self._device = device
        positions = getattr(model.config, "max_position_embeddings", None) or TOKENS_MAX
        self._tokens_max = min(TOKENS_MAX, int(positions))
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._forced: dict[str, int] = {}
        if languages:
            self._tokenizer.src_lang = languages[0]
            self._forced["forced_bos_token_id"] = self._language(source, languages[1])

    def _language(self, source: str, code: str) -> int:
        """The token that makes the model write in a language."""
        tokenizer = self._tokenizer
        try:
            found = tokenizer.get_lang_id(code) if hasattr(tokenizer, "get_lang_id") else tokenizer.get_vocab()[code]
        except KeyError as error:
            raise ModelError(f"translation model {source!r} knows no language {code!r}; see its card") from error
        return int(found)

    def fits(self, texts: Sequence[str]) -> list[bool]:
        """Whether ``translate`` would see each text whole."""
        limit = self._tokens_max
        # No token has more characters on average than this: a megabyte need not be tokenised.
        return [len(text) <= 16 * limit and len(self._tokenizer(text)["input_ids"]) <= limit for text in texts]

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Translations in the order of the texts. A text is cut to TOKENS_MAX tokens, or to the model's positions.
        Empty where the model says nothing, and where it comes to no end by then or by twice the text's tokens and some:
        what it would have said last is not known."""
        results = [""] * len(texts)
        order = sorted((i for i in range(len(texts)) if texts[i].strip()), key=lambda i: len(texts[i]))
        for start in range(0, len(order), BATCH):  # of like length, for the sake of padding
            part = order[start : start + BATCH]
            for i, result in zip(part, self._batch([texts[i] for i in part]), strict=True):
                results[i] = result
        return results

    @torch.inference_mode()
    def _batch(self, texts: Sequence[str]) -> list[str]:
        inputs = self._tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self._tokens_max
        )
        # By each text's own length, so that what stands beside it in a batch is of no consequence.
        bounds = [min(self._tokens_max - 2, 2 * n + 16) for n in inputs["attention_mask"].sum(1).tolist()]
        outputs = self._model.generate(
            input_ids=inputs["input_ids"].to(self._device),
            attention_mask=inputs["attention_mask"].to(self._device),
            num_beams=1,
            do_sample=False,
            max_new_tokens=max(bounds) + 1,  # Marian forces an end on the last one, which is cut away
            **self._forced,
        )
        # Without the first token, which begins the answer: some models begin with what is their end, too.
        cut = [ids[1 : 1 + bound] for ids, bound in zip(outputs.tolist(), bounds, strict=True)]
        return [
            "" if self._ends.isdisjoint(ids) else str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()
            for ids in cut
        ]


def _short(error: BaseException) -> str:
    """The first line of a message: transformers' run over many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
