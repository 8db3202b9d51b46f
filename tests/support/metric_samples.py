"""The samples of a server's /metrics, as Prometheus reads them."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from serving import MODEL

PREFIX = "vllm:"


@dataclass(frozen=True)
class Samples:
    """All samples of one scrape, which have the labels of one model."""

    samples: list[Sample]
    model: str

    @classmethod
    def of_text(cls, text: str, model: str) -> Samples:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        assert {(sample.labels["model_name"], sample.labels["engine"]) for sample in samples} == {(model, "0")}
        keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in samples]
        assert len(set(keys)) == len(keys), "a sample is there twice"
        return cls(samples, model)

    @classmethod
    def of_registry(cls, registry: CollectorRegistry, model: str) -> Samples:
        return cls.of_text(generate_latest(registry).decode(), model)

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}

    def value(self, name: str, **labels: str) -> float:
        """The only sample of the name, without its prefix, that has these labels beside those of all."""
        labels |= {"model_name": self.model, "engine": "0"}
        (value,) = [each.value for each in self.samples if each.name == PREFIX + name and each.labels == labels]
        return value

    def histogram(self, name: str) -> tuple[float, float]:
        """Its count and its sum."""
        assert self.value(f"{name}_bucket", le="+Inf") == self.value(f"{name}_count")
        return self.value(f"{name}_count"), self.value(f"{name}_sum")


def read_metrics(client: httpx.Client, model: str = MODEL) -> Samples:
    response = client.get("/metrics")
    assert response.status_code == 200, response.text
    return Samples.of_text(response.text, model)
