"""What the simulated shop sells, and the sentences its customers write: ``worker/demo/shop.yaml``, typed."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import yaml

Language = Literal["zh", "en"]
Mood = Literal["positive", "neutral", "negative"]
FILE: Final = Path(__file__).with_name("shop.yaml")
_SLOT = re.compile(r"\{(\w+)\}")
_JOIN: Final[dict[Language, tuple[str, ...]]] = {"zh": ("，", "，", "。"), "en": (", ", " and ", ". ")}
_TURN: Final[dict[Language, tuple[str, ...]]] = {"zh": ("，就是", "，不过"), "en": (", but ", "; still, ")}
_EMOJI: Final[dict[Mood, tuple[str, ...]]] = {
    "positive": ("👍", "😀", "❤️"),
    "neutral": ("🤔",),
    "negative": ("😡", "👎", "💔"),
}
_EMOJI_SHARE: Final = 0.08
_MIXED_SHARE: Final = 0.12


class Item(msgspec.Struct, frozen=True):
    """Something for sale. ``share`` is its part of all attention, by Zipf's law; the shares add up to 1."""

    item_id: str
    category: str
    category_en: str
    brand: str
    titles: dict[Language, str]
    price: float
    share: float


class Catalogue:
    """Items, best-selling first, and the writer of what customers say about them."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.items = _items(content)
        self.categories = list(content["categories"])
        self.by_category = {name: [item for item in self.items if item.category == name] for name in self.categories}
        self.surge = next(item for item in self.items if item.titles["zh"] == content["surge"])
        self.intents: list[str] = list(content["service"]["intents"])
        self.surge_intents: list[str] = content["service"]["surge"]
        self._services: list[str] = content["services"]
        self._brands: dict[str, str] = content["brands"]
        self._slots = content["slots"]
        self._reviews = content["reviews"]
        self._searches = content["searches"]
        self._service = content["service"]

    @classmethod
    def load(cls, file: Path = FILE) -> Catalogue:
        """The catalogue that ships with Millrace."""
        return cls(yaml.safe_load(file.read_text(encoding="utf-8")))

    def review(self, item: Item, language: Language, mood: Mood, rng: random.Random, *, surge: bool = False) -> str:
        """One to three clauses on an item. In a ``surge`` the first is of the product's sudden trouble."""
        texts = self._reviews[language]
        goods = item.category not in self._services
        if mood == "neutral":
            clauses = rng.sample(texts["neutral"], rng.randint(1, 2))
        else:
            own = self._reviews["category"][item.category][language][mood]
            clauses = [rng.choice(own), *rng.sample(texts[mood], rng.randint(0, 2))] if goods else rng.sample(own, 2)
            rng.shuffle(clauses)
        if surge:
            clauses[0] = rng.choice(self._reviews["surge"][language])
        text = clauses[0]
        for clause in clauses[1:]:
            join = rng.choice(_JOIN[language])
            text += join + (_capital(clause) if join == ". " else clause)
        if goods and mood == "positive" and rng.random() < _MIXED_SHARE:
            text += rng.choice(_TURN[language]) + rng.choice(texts["negative"])
        opening = rng.choice(texts["openings"]) if goods else ""
        text = opening + (_capital(text) if opening.endswith(". ") else text) + rng.choice(texts["endings"])
        if rng.random() < _EMOJI_SHARE:
            text += rng.choice(_EMOJI[mood])
        return _capital(self._fill(text, language, rng, item))

    def message(self, intent: str, item: Item, language: Language, rng: random.Random) -> str:
        """A message to customer service with an intent; ``oos`` is what no shop can answer."""
        service = self._service
        patterns = service["outside"] if intent == "oos" else service["intents"][intent]
        text = rng.choice(service["greetings"][language]) + rng.choice(patterns[language])
        return _capital(self._fill(text + rng.choice(service["thanks"][language]), language, rng, item))

    def query(self, category: str, language: Language, rng: random.Random) -> str:
        """What is typed into the search box by someone who looks for a category."""
        query: str = rng.choice(self._searches[category][language])
        return query

    def _fill(self, text: str, language: Language, rng: random.Random, item: Item) -> str:
        title = item.titles[language]
        brand = item.brand if language == "zh" else self._brands.get(item.brand, title.split()[0])
        own = {"item": title.split(",")[0], "brand": brand}

        def value(match: re.Match[str]) -> str:
            name = match[1]
            return own[name] if name in own else str(rng.choice(self._slots[language][name]))

        return _SLOT.sub(value, text)


def _items(content: dict[str, Any]) -> list[Item]:
    """All items by rank: the best sellers, then the first of every category, the second of every category, ..."""
    rows: list[tuple[int, int, str, str, list[Any]]] = []
    best: list[str] = content["best_sellers"]
    for place, (category, entry) in enumerate(content["categories"].items()):
        for depth, row in enumerate(entry["items"]):
            rank = best.index(row[0]) - len(best) if row[0] in best else depth
            rows.append((rank, place, category, entry["en"], row))
    rows.sort(key=lambda row: row[:2])
    total = sum(1 / rank for rank in range(1, len(rows) + 1))
    return [
        Item(
            item_id=f"i{1000 + place * 100 + int(row[3]) % 97}-{rank:02d}",
            category=category,
            category_en=english,
            brand=row[2],
            titles={"zh": row[0], "en": row[1]},
            price=float(row[3]),
            share=1 / rank / total,
        )
        for rank, (_, place, category, english, row) in enumerate(rows, 1)
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
