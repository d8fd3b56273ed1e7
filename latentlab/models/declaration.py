"""Validation of a model's declared attributes: their types and their consistency."""

from collections.abc import Mapping

from latentlab.errors import ModelError
from latentlab.models.base import LatentModel, Position
from latentlab.symmetry.group import NEXT, Group


def check_declaration(model: LatentModel) -> None:
    """Refuse a model whose attributes are missing, of a wrong type, or inconsistent with each other.

    Raises:
        ModelError: Names the attribute, what it must be, and its value.
    """
    for attribute, kind, what in (
        ("dims", Mapping, 'a dict of site and dims, such as {"z": ("unit", "latent")}'),
        ("positions", tuple | list, 'a tuple of `Position`s, such as (Position("z"),)'),
        ("symmetry", Group, "a group, such as Identity()"),
        ("methods", tuple | list, 'a tuple of names, such as ("nuts", "svi")'),
    ):
        value = getattr(model, attribute, None)
        if not isinstance(value, kind):
            raise ModelError(f"{model.name!r}: `{attribute}` must be {what}; got {'nothing' if value is None else repr(value)}.")
    for site, dims in model.dims.items():
        if not isinstance(dims, tuple | list) or not all(isinstance(dim, str) for dim in dims):
            raise ModelError(f"{model.name!r}: the dims of {site!r} must be a tuple of names, such as ('unit',); got {dims!r}.")
    group = model.exchanges
    if not model.positions:
        raise ModelError(f'{model.name!r}: `positions` must hold a `Position`, such as Position("z"); it is empty.')
    odd = next((position for position in model.positions if not isinstance(position, Position)), None)
    if odd is not None:
        raise ModelError(f'{model.name!r}: `position` must be a `Position`, such as Position("z"); got {odd!r}.')
    for position in model.positions:
        if position.site not in model.dims:
            sites = ", ".join(model.dims)
            raise ModelError(f"{model.name!r}: the position {position.site!r} must be one of the sites in `dims`: {sites}.")
    kinds = [next(iter(model.dims[position.site]), "") for position in model.positions]
    if len(set(kinds)) < len(kinds):
        raise ModelError(f"{model.name!r}: each of `positions` must be of another kind of units; got {', '.join(kinds)}.")
    position = model.position
    if group.is_trivial():
        return
    other = next((kind for kind in kinds if kind and kind not in group.units), None)
    if other is not None:
        text = ", ".join(map(repr, kinds)) + ("," if len(kinds) == 1 else "")
        raise ModelError(
            f"{model.name!r}: `symmetry` must name the kinds of units that have positions; declare "
            f"{type(group).__name__}({group.dim!r}, units=({text}))."
        )
    along = [site for site, dims in model.dims.items() if group.dim in [str(dim).removeprefix(NEXT) for dim in dims]]
    if not along or (position.kind != "discrete" and position.site not in along):
        lacks = f"the position {position.site!r} does not have" if along else "no site has"
        raise ModelError(
            f"{model.name!r}: {type(group).__name__}({group.dim!r}) acts on the dim {group.dim!r}, which {lacks}; "
            "name another dim, or declare Identity()."
        )
