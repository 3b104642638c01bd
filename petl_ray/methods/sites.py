"""Where adapters may sit in any Hugging Face model: its linear maps and norms, and the part each plays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from petl_ray.errors import AdapterError

QUERIES = {"query", "q_proj", "q_lin", "q", "query_proj", "Wqkv", "qkv_proj", "query_key_value", "in_proj"}
KEYS = {"key", "k_proj", "k_lin", "k", "key_proj", "Wqkv", "qkv_proj", "query_key_value", "in_proj"}
VALUES = {"value", "v_proj", "v_lin", "v", "value_proj", "Wqkv", "qkv_proj", "query_key_value", "in_proj"}


@dataclass(frozen=True)
class Site:
    """One module that an adapter may touch. `width` is the output size; `layer` the path of its numbered layer."""

    name: str
    kind: Literal["linear", "norm"]
    in_width: int
    width: int
    bias: bool
    layer: str = ""
    attention: bool = False
    head: bool = False

    @property
    def number(self) -> int | None:
        """The number of its layer, counted from 0; None outside the numbered layers."""
        return next((int(part) for part in self.layer.split(".") if part.isdigit()), None)


@dataclass(frozen=True)
class Anatomy:
    """All sites of a model in the order of its modules; `label` names the head's last map, whose rows are the labels.

    `head_modules` are the model's children that make up the classification head (empty for a language model).
    """

    sites: tuple[Site, ...]
    head_modules: tuple[str, ...]
    label: str | None
    linear_names: tuple[str, ...]
    initializer_range: float

    @property
    def linears(self) -> tuple[Site, ...]:
        """The linear maps inside the numbered layers of the backbone: what `all-linear` means."""
        return tuple(site for site in self.sites if site.kind == "linear" and site.layer and not site.head)

    @property
    def layers(self) -> int:
        """How many numbered layers the backbone has."""
        return max((site.number + 1 for site in self.sites if site.number is not None), default=0)

    @property
    def heads(self) -> tuple[Site, ...]:
        """The leaves of the classification head."""
        return tuple(site for site in self.sites if site.head)


def anatomy(model: Any) -> Anatomy:
    """Read the anatomy off a model's modules (weights are not looked at, so a model on the meta device will do).

    Raises AdapterError for a classification head made of other things than linear maps and norms.
    """
    heads = _head_modules(model)
    sites = tuple(site for name, module in model.named_modules() if (site := _site(name, module, heads)))
    label = None
    if heads:
        known = {site.name for site in sites}
        for name, module in model.named_modules():
            if (
                name.split(".")[0] in heads
                and name not in known
                and any(True for _ in module.parameters(recurse=False))
            ):
                raise AdapterError(
                    name, f"a head with a {type(module).__name__}", "only linear maps and norms are known"
                )
        scores = [
            site for site in sites if site.head and site.kind == "linear" and site.width == model.config.num_labels
        ]
        if not scores:
            raise AdapterError(type(model).__name__, "found no map to the labels", "a classification head ends in one")
        label = scores[-1].name
    return Anatomy(
        sites=sites,
        head_modules=heads,
        label=label,
        linear_names=tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear)),
        initializer_range=float(getattr(model.config, "initializer_range", 0.02)),
    )


def _head_modules(model: Any) -> tuple[str, ...]:
    if "ForSequenceClassification" not in type(model).__name__:
        return ()
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    return tuple(name for name in children if name != model.base_model_prefix)


def _site(name: str, module: nn.Module, heads: Sequence[str]) -> Site | None:
    path = name.split(".")
    head = path[0] in heads
    numbers = [index for index, part in enumerate(path) if part.isdigit()]
    layer = ".".join(path[: numbers[-1] + 1]) if numbers and not head else ""
    attention = any(re.search("attn|attention", part, re.IGNORECASE) for part in path)
    if isinstance(module, nn.Linear):
        bias = module.bias is not None
        return Site(name, "linear", module.in_features, module.out_features, bias, layer, attention, head)
    if is_norm(module):
        weight = module.weight
        bias = getattr(module, "bias", None) is not None
        return Site(name, "norm", weight.numel(), weight.numel(), bias, layer, attention, head)  # type: ignore[operator]
    return None


def is_norm(module: nn.Module) -> bool:
    """True for a layer norm or RMS norm with a weight vector of its own."""
    named = isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
    weight = getattr(module, "weight", None)
    return named and weight is not None and weight.dim() == 1


def targeted(found: Anatomy, targets: str | tuple[str, ...]) -> tuple[Site, ...]:
    """The linear sites that a named set or a list of module names (suffixes) stands for.

    Raises AdapterError for a name that matches nothing, with the names there are.
    """
    if isinstance(targets, str):
        chosen = tuple(site for site in found.linears if _in_set(site, targets))
        if not chosen:
            raise AdapterError(
                "method.targets", f"got '{targets}'", "this model has no such modules", module_names(found)
            )
        return chosen
    allowed = [site for site in found.sites if site.kind == "linear" and not site.head]
    for target in targets:
        if not any(_matches(site.name, target) for site in allowed):
            raise AdapterError(
                "method.targets", f"got '{target}'", "no linear map of this model ends so", module_names(found)
            )
    return tuple(site for site in allowed if any(_matches(site.name, target) for target in targets))


def short_names(found: Anatomy, sites: Sequence[Site]) -> list[str]:
    """The shortest list of suffixes that names exactly `sites`: last components where they suffice, else full names."""
    chosen = {site.name for site in sites}
    last = {name.rsplit(".", 1)[-1] for name in chosen}
    unique = all(name in chosen for name in found.linear_names if name.rsplit(".", 1)[-1] in last)
    return sorted(last if unique else chosen)


def output_projections(found: Anatomy) -> tuple[Site, ...]:
    """Per layer the last map of its attention and the last map of its feed-forward part, back to the model's width."""
    last: dict[tuple[str, bool], Site] = {}
    for site in found.linears:
        last[site.layer, site.attention] = site
    return tuple(site for site in found.linears if last[site.layer, site.attention] is site)


def feedforward_outputs(found: Anatomy) -> tuple[Site, ...]:
    """Per layer the last map of its feed-forward part."""
    return tuple(site for site in output_projections(found) if not site.attention)


def in_layers(found: Anatomy, sites: Sequence[Site], layers: Sequence[int]) -> tuple[Site, ...]:
    """Those of `sites` that lie in the layers with these numbers. Raises AdapterError for a number there is not, and
    where nothing remains."""
    if max(layers) >= found.layers:
        raise AdapterError(
            "method.layers",
            f"got {max(layers)}",
            f"this model has {found.layers} layers",
            f"Choose 0 to {found.layers - 1}",
        )
    chosen = tuple(site for site in sites if site.number in layers)
    if not chosen:
        raise AdapterError("method.layers", f"got {list(layers)}", "no targeted module lies there", "Choose others")
    return chosen


def lowest_layer(found: Anatomy, sites: Sequence[Site]) -> int:
    """The number of the lowest layer that any of `sites` lies in: what is below computes as the plain base does.

    Heads, and what stands behind the layers, count as above the last one; what stands before them as layer 0.
    """
    first = next((index for index, site in enumerate(found.sites) if site.number is not None), 0)
    before = {site.name for site in found.sites[:first]}
    return min((_number(found, site, before) for site in sites), default=found.layers)


def _number(found: Anatomy, site: Site, before: set[str]) -> int:
    if site.number is not None:
        return site.number
    return 0 if site.name in before and not site.head else found.layers


def last_name(site: Site) -> str:
    """The last part of a site's name: what the module is called within its layer."""
    return site.name.rsplit(".", 1)[-1]


def _in_set(site: Site, targets: str) -> bool:
    if targets == "all-linear":
        return True
    if targets == "query_value":
        return site.attention and last_name(site) in QUERIES | VALUES
    return site.attention if targets == "attention" else not site.attention


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def module_names(found: Anatomy) -> str:
    """The last parts of the names there are, as advice."""
    return "Choose among " + ", ".join(sorted({last_name(site) for site in found.linears}))
