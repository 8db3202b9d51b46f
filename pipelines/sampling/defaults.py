"""Sampling defaults of a checkpoint: its generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.errors import InputError
from pipelines.sampling.params import OPEN_FIELDS, ResolvedSamplingParams, SamplingParams

GENERATION_CONFIG_FILE = "generation_config.json"


@dataclass(frozen=True)
class SamplingDefaults:
    """Defaults of the sampling parameters that a caller leaves open, within the bounds of SamplingParams; None: none.

    Raises:
        InputError: A value has the wrong type or is out of range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        checked = SamplingParams(**asdict(self))
        for name in OPEN_FIELDS:
            object.__setattr__(self, name, getattr(checked, name))

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> SamplingDefaults:
        """Reads the content of a generation_config.json as vLLM does; a field that is null counts as absent.

        As in transformers, `do_sample` false means greedy, and `do_sample` true without a temperature means 1.

        Raises:
            InputError: A field has the wrong type or is out of range.
        """
        do_sample = config.get("do_sample")
        try:
            if not isinstance(do_sample, bool | None):
                raise InputError(f"do_sample={do_sample!r} must be true or false")
            defaults = cls(**{name: config.get(name) for name in OPEN_FIELDS})
        except InputError as error:
            raise InputError(f"{GENERATION_CONFIG_FILE}: {error}") from error
        if do_sample is False:
            return replace(defaults, temperature=0.0)
        return replace(defaults, temperature=1.0) if do_sample and defaults.temperature is None else defaults

    def describe(self, params: SamplingParams) -> str:
        """Describes the defaults that a request with these parameters uses: "temperature 0.6, top_k 20".

        Defaults without an effect are left out: cuts where the choice is greedy, and values that change nothing.
        """
        resolved, neutral = params.resolved(self), ResolvedSamplingParams()
        effective = OPEN_FIELDS if resolved.temperature > 0.0 else ("repetition_penalty",)
        taken = {name: getattr(resolved, name) for name in effective if getattr(params, name) is None}
        return ", ".join(f"{name} {value}" for name, value in taken.items() if value != getattr(neutral, name))
