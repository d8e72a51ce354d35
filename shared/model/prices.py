"""Prices with their dates, and what an answer costs by them. `prices.yaml` beside this file is the default.

A replica's hours are counted while it answers; hours in which it idles are not, since other tasks share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shared.errors import ConfigurationError

SHIPPED = Path(__file__).with_name("prices.yaml")
DEFAULT = "default"
_HOUR_SECONDS = 3_600.0
_MILLION = 1_000_000.0

Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Price(_Section):
    price: Amount
    as_of: date


class Serving(_Section):
    """How a model is served: by the hours of a replica's GPUs and cores, or by tokens at a provider."""

    gpus: Amount = 0.0
    cpus: Amount = 0.0
    million_prompt_tokens: Amount | None = None
    million_answer_tokens: Amount | None = None
    as_of: date | None = None

    @property
    def by_tokens(self) -> bool:
        return self.million_prompt_tokens is not None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        by_tokens = [self.million_prompt_tokens, self.million_answer_tokens, self.as_of]
        if any(value is not None for value in by_tokens):
            if any(value is None for value in by_tokens) or self.gpus or self.cpus:
                raise ValueError("by tokens: million_prompt_tokens, million_answer_tokens and as_of, and nothing else")
        elif not (self.gpus or self.cpus):
            raise ValueError("say how it is served: {gpus: 1}, {cpus: 8}, or the prices of a million tokens")
        return self


@dataclass(frozen=True)
class Cost:
    """What one answer costs, in the list's currency, and the oldest date of the prices it is reckoned by."""

    amount: float
    as_of: date


class PriceList(_Section):
    """The content of the YAML file."""

    currency: Annotated[str, Field(min_length=1, max_length=3)]
    gpu_hour: Price
    cpu_hour: Price
    models: dict[str, Serving]

    @model_validator(mode="after")
    def _has_default(self) -> Self:
        if DEFAULT not in self.models:
            raise ValueError(f"models needs a `{DEFAULT}`: how a model is served that is not listed")
        return self

    def serving(self, model: str) -> Serving:
        """Return how `model`, a base model's name, is served: as the default where it is not listed."""
        return self.models.get(model, self.models[DEFAULT])

    def model_answer(self, model: str, seconds: float, prompt_tokens: float, answer_tokens: float) -> Cost:
        """Return the cost of an answer of `model`, a base model's name, that keeps a replica busy for `seconds`."""
        serving = self.serving(model)
        if serving.million_prompt_tokens is not None and serving.as_of is not None:
            answers = answer_tokens * (serving.million_answer_tokens or 0.0)
            return Cost((prompt_tokens * serving.million_prompt_tokens + answers) / _MILLION, serving.as_of)
        hours = seconds / _HOUR_SECONDS
        counts = ((serving.gpus, self.gpu_hour), (serving.cpus, self.cpu_hour))
        used = [(count, price) for count, price in counts if count]
        amount = sum(count * price.price for count, price in used) * hours
        return Cost(amount, min(price.as_of for _, price in used))

    def core_answer(self, seconds: float) -> Cost:
        """Return the cost of an answer that takes one core `seconds`."""
        return Cost(seconds / _HOUR_SECONDS * self.cpu_hour.price, self.cpu_hour.as_of)


def money(amount: float, currency: str) -> str:
    """Return an amount with its currency: to cents, and below 1 its first two digits."""
    return f"{amount:,.2f} {currency}" if amount >= 1.0 else f"{amount:.2g} {currency}"


def read_prices(path: Path | None) -> PriceList:
    """Read a price list; None: the shipped one. Raises ConfigurationError with what is wrong in which file."""
    path = path or SHIPPED
    way_out = f"RATCHET_PRICES_FILE names it; {SHIPPED} is a complete example."
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return PriceList.model_validate(content)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigurationError(f"the prices in {path} cannot be read: {error}", way_out) from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}" for problem in error.errors()
        )
        raise ConfigurationError(f"the prices in {path} are not valid: {problems}", way_out) from error
