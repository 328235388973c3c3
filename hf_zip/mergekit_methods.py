"""mergekit's merge methods in the words of recipes here: names, parameters and their defaults."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_zip.errors import HfZipError
from hf_zip.mergekit_values import Setting, constant

# mergekit's methods → the method here, and what becomes of task vectors that were made sparse:
# without and with `normalize`. Nothing there: `normalize` divides a sum by the sum of the weights.
_SPARSE: dict[str, tuple[str, str | None, str | None]] = {
    "dare_linear": ("dare", None, None),
    "dare_ties": ("dare", "ties_sum", "ties"),
    "breadcrumbs": ("breadcrumbs", None, None),
    "breadcrumbs_ties": ("breadcrumbs", "ties_sum", "ties"),
    "della": ("della", "ties_sum", "ties"),
    "della_linear": ("della", None, None),
}
_KNOWN = {
    "linear": ("weight", "normalize"),
    "slerp": ("t",),
    "nuslerp": ("weight", "nuslerp_flatten", "nuslerp_row_wise"),
    "multislerp": ("weight", "normalize_weights", "eps"),
    "karcher": ("max_iter", "tol"),
    "model_stock": ("filter_wise",),
    "sce": ("select_topk",),
}
METHODS = (*_KNOWN, "task_arithmetic", "ties", *_SPARSE)
REFUSED = {
    "passthrough": "copies the tensors of one model, which is no merge",
    "nearswap": "moves every number of one model towards another's by a fixed amount, and no "
    "method here does so; slerp goes a share of the way",
    "arcee_fusion": "takes the numbers of one model that matter by a score of their softmax, and "
    "no method here does so; consensus, magmax and ties choose numbers by their change",
    "ram": "tells common from own changes by a threshold, and no method here does so; consensus "
    "and magmax are near",
    "ramplus_tl": "rescales what only one model has changed, and no method here does so; consensus "
    "and magmax are near",
}
_NORMALIZED = ("linear", "ties", "della")
_RESCALED = ("dare_linear", "dare_ties", "della", "della_linear")

Settings = Mapping[str, Setting]
Model = tuple[str, Settings]


def known_parameters(method: str) -> tuple[str, ...]:
    """Returns the parameters that a method of mergekit has, but for those without effect here.

    Args:
        method: Its name there.
    """
    if method in _KNOWN:
        return _KNOWN[method]
    if method == "task_arithmetic":
        return ("weight", "lambda", "normalize")
    more = {"breadcrumbs": ("gamma",), "della": ("epsilon",)}
    own = more.get(_SPARSE[method][0], ()) if method in _SPARSE else ()
    return ("weight", "lambda", "normalize", "density", "rescale", *own)


def recipe_of(
    method: str, base: str | None, own: list[Model], common: Settings
) -> tuple[dict[str, Any], list[str]]:
    """Returns the recipe of a method of mergekit, and where it may differ.

    Args:
        method: Its name there.
        base: The base model.
        own: The models with their parameters.
        common: The parameters of all.

    Raises:
        HfZipError: A parameter that it needs is missing, or one has no counterpart here.
    """
    notes = ["task heads stay apart, one for each task, where mergekit merges those of one shape"]
    if not own:
        raise HfZipError("the mergekit configuration names no models but the base; list some")
    if method == "sce":
        notes.append(
            "of task vectors whose mean squares sum up to less than 1e-6 mergekit takes the plain "
            "mean, here all are weighted by them"
        )
    if method in _RESCALED and _flag("rescale", common, True):
        notes.append(
            "what is dropped is drawn from other random numbers, and what is left is divided by "
            "its probability to stay, where mergekit restores the sum of magnitudes"
        )
    if method in ("slerp", "nuslerp", "multislerp"):
        return _on_a_sphere(method, base, own, common), notes
    if method in _KNOWN:
        return _of_weights(method, base, own, common), notes
    return _of_task_vectors(method, base, own, common), notes


def _of_weights(
    method: str, base: str | None, own: list[Model], common: Settings
) -> dict[str, Any]:
    """The recipe of a method with few parameters of its own."""
    models: list[dict[str, Any]] = [{"model": name} for name, _ in own]
    if method == "linear":
        weights = [_required("weight", name, options, common) for name, options in own]
        if not _flag("normalize", common, True):
            _check_sum("normalize", weights)
        return {"merge_method": "average", "models": _weighted(own, weights)}
    if method == "karcher":
        names = {"max_iter": "max_iterations", "tol": "tolerance"}
        values = {new: common[old].constant() for old, new in names.items() if old in common}
        models = [{**model, "parameters": {"weight": 1.0}} for model in models]
        return {"merge_method": "karcher", "models": models, "parameters": values}
    found = {"merge_method": method, "models": models, "base_model": base}
    if method == "sce":
        share = common.get("select_topk", constant(1.0)).followed_by(constant(1.0))
        return {**found, "parameters": {"select_topk": share.in_recipe()}}
    if _flag("filter_wise", common, False):
        raise HfZipError("filter_wise gives every row a ratio of its own; here a parameter has one")
    return found


def _on_a_sphere(
    method: str, base: str | None, own: list[Model], common: Settings
) -> dict[str, Any]:
    """The recipe of a method that takes arcs."""
    if method == "slerp":
        if base is None or len(own) != 1:
            raise HfZipError(
                "mergekit's slerp goes from base_model to one other model, but base_model is "
                f"{base!r} and there are {len(own)} others; give two models, and one of them as "
                "base_model"
            )
        t = _required("t", own[0][0], own[0][1], common).in_recipe()
        listed = [{"model": base}, {"model": own[0][0]}]
        return {"merge_method": "slerp", "models": listed, "parameters": {"t": t}}
    origin = {} if base is None else {"base_model": base}
    options: dict[str, Any] = {"origin": "zero" if base is None else "base"}
    weights = [_required("weight", name, given, common) for name, given in own]
    if method == "multislerp":
        if not _flag("normalize_weights", common, True):
            _check_sum("normalize_weights", weights)
        options = {**options, "tangent": "plane"}
        models = _weighted(own, weights)
        return {"merge_method": "multi_slerp", "models": models, **origin, "parameters": options}
    if len(own) != 2:
        raise HfZipError(f"mergekit's nuslerp merges two models, but there are {len(own)}")
    if not _flag("nuslerp_flatten", common, True):
        raise HfZipError(
            "nuslerp_flatten: false gives every row or column an arc of its own; here a parameter "
            "has one, so leave it out"
        )
    first, second = (weight.constant() for weight in weights)
    total = first + second
    options = {**options, "t": 0.5 if abs(total) < 1e-6 else second / total}
    models = [{"model": name} for name, _ in own]
    return {"merge_method": "slerp", "models": models, **origin, "parameters": options}


def _of_task_vectors(
    method: str, base: str | None, own: list[Model], common: Settings
) -> dict[str, Any]:
    """The recipe of a method that adds task vectors, every one of mergekit's defaults written."""
    weights = [_required("weight", name, options, common) for name, options in own]
    densities = [_given("density", options, common, 1.0) for _, options in own]
    normalize = _flag("normalize", common, method in _NORMALIZED)
    rescale = _flag("rescale", common, method in _RESCALED)
    name, apart, together = _SPARSE.get(method, (method, None, None))
    scaling = _given("lambda", {}, common, 1.0)
    each: list[dict[str, Any]] = [{"weight": weight.in_recipe()} for weight in weights]
    parameters: dict[str, Any] = {}
    if rescale and method not in _RESCALED:
        raise HfZipError(f"{method!r} with rescale has no counterpart here; leave rescale out")
    if method == "ties":
        parameters |= {"trim": "tensor", "merge": "mean" if normalize else "sum"}
        each = [{**e, "density": d.in_recipe()} for e, d in zip(each, densities, strict=True)]
    elif apart is None and normalize:
        total = sum(weight.constant() for weight in weights)
        scaling = scaling.mapped(lambda factor: factor / (total if abs(total) >= 1e-8 else 1.0))
    if name in ("dare", "della", "breadcrumbs"):
        parameters["merge"] = (together if normalize else apart) or "linear"
    if name == "dare":
        parameters["rescale"] = rescale
        rates = [density.mapped(_rest).in_recipe() for density in densities]
        each = [{**e, "drop_rate": rate} for e, rate in zip(each, rates, strict=True)]
    elif name == "della":
        edges = [_given("epsilon", options, common, 0.15) for _, options in own]
        parameters |= _della(_one("density", densities, name), _one("epsilon", edges, name))
        parameters["rescale"] = rescale
    elif name == "breadcrumbs":
        edges = [_given("gamma", options, common, 0.01) for _, options in own]
        parameters |= _breadcrumbs(_one("density", densities, name), _one("gamma", edges, name))
    parameters = {"scaling": scaling.in_recipe(), **parameters}
    models = [{"model": n, "parameters": e} for (n, _), e in zip(own, each, strict=True)]
    return {"merge_method": name, "models": models, "base_model": base, "parameters": parameters}


def _della(density: Setting, edge: Setting) -> dict[str, Any]:
    """Which rates numbers are dropped at; where all are kept, none is."""
    window = edge.mapped(lambda half: 2 * half)
    if density.is_constant and density.constant() >= 1:
        window = constant(0.0)
    elif max(density.values) >= 1:
        raise HfZipError(
            "density varies and is 1 somewhere, where mergekit's della drops nothing whatever "
            "epsilon is; here both decide, so give densities below 1"
        )
    return {"drop_rate": density.mapped(_rest).in_recipe(), "window_size": window.in_recipe()}


def _breadcrumbs(density: Setting, edge: Setting) -> dict[str, Any]:
    """Between which shares of the numbers those that are kept lie."""
    if density.is_constant and edge.is_constant:
        kept, cut = density.constant(), edge.constant()
        top = 0.0 if kept >= 1 else min(cut, 1 - kept)
        return {"beta": max(0.0, 1 - kept - top), "gamma": 1 - top}
    cut = edge.constant()
    if max(density.values) > 1 - cut:
        raise HfZipError(
            f"density varies and is {max(density.values)} somewhere, more than gamma ({cut}) "
            "leaves, which has no counterpart here; give smaller densities"
        )
    return {"beta": density.mapped(lambda kept: 1 - kept - cut).in_recipe(), "gamma": 1 - cut}


def _rest(share: float) -> float:
    return 1 - share


def _weighted(own: list[Model], weights: Sequence[Setting]) -> list[dict[str, Any]]:
    return [
        {"model": name, "parameters": {"weight": weight.in_recipe()}}
        for (name, _), weight in zip(own, weights, strict=True)
    ]


def _check_sum(name: str, weights: Sequence[Setting]) -> None:
    """Checks that weights that are not divided by their sum need not be."""
    total = sum(weight.constant() for weight in weights)
    if abs(total - 1) > 1e-6:
        raise HfZipError(
            f"{name} is false and the weights sum up to {total:g}; here a mean has weights that "
            f"sum up to 1, so leave {name} out or give such weights"
        )


def _given(name: str, options: Settings, common: Settings, default: float) -> Setting:
    """A parameter of a model; what it has no value for, all models' has, or else the default."""
    nothing = Setting(name, ())
    found = options.get(name, nothing).followed_by(common.get(name, nothing))
    return found.followed_by(constant(default, name))


def _required(name: str, model: str, options: Settings, common: Settings) -> Setting:
    nothing = Setting(f"{name} of {model!r}", ())
    found = nothing.followed_by(options.get(name, nothing)).followed_by(common.get(name, nothing))
    found = found if found.entries else constant(None, nothing.where)
    found.in_recipe()  # that it is a number, for every tensor
    return found


def _flag(name: str, common: Settings, default: bool) -> bool:
    """A parameter that is on or off, as a truth value or as 1 or 0."""
    if name not in common:
        return default
    value = common[name].constant()
    if value not in (True, False):
        raise HfZipError(f"{common[name].where} should be true or false, not {value!r}")
    return bool(value)


def _one(name: str, values: Sequence[Setting], method: str) -> Setting:
    if any(value.entries != values[0].entries for value in values):
        raise HfZipError(
            f"{name} is {', '.join(str(value.in_recipe()) for value in values)}, but {method!r} "
            "has one for all models here; give all models the same"
        )
    return values[0]
