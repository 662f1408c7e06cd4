"""Settings that a user gave and that have no effect in a run: told before any work, and not passed over in silence.

Who reads a setting says so itself: a baseline (:meth:`petx.baselines.Baseline.owns`), a host
(:attr:`petx.hosts.Host.small_settings`, ``given_settings``), a kind of data (:attr:`petx.tasks.Source.settings`). What
nobody of a kind declares is read by all of it.
"""

from collections.abc import Collection, Iterable
from typing import Any

from petx import baselines, hosts, tasks
from petx.errors import UserError
from petx.hosts import Host


def check(settings: Any, host: type[Host], more_arms: Iterable[str] = ()) -> None:
    """Raise :class:`UserError` if ``settings.given`` has what neither ``host``, the data nor an arm reads.

    ``more_arms``: those that are resumed beside the settings' own.
    """
    found = reasons(settings, sorted(settings.given), host=host, arms=[*settings.all_arms, *more_arms])
    if found:
        raise UserError("; ".join(found.values()))


def reasons(settings: Any, names: Iterable[str], *, arms: Collection[str], host: type[Host] | None) -> dict[str, str]:
    """``{name: words}`` of those of ``names`` that have no effect; ``host`` is None if its kind is not known yet."""
    offered = baselines.of_method(settings.recipe)
    of_arms = {name for arm in offered.values() for name in arm.owns()}
    by_arms = {name for arm in arms for name in offered[arm].reads(settings)}
    if host is not None:
        by_arms -= {name for arm in {settings.recipe, *arms} for name in offered[arm].unread_on(host, settings)}
    kinds = list(hosts.of_method(settings.recipe).values())
    of_hosts = {name for kind in kinds for name in (*kind.small_settings, *kind.given_settings)}
    by_host = of_hosts if host is None else host.reads(settings)
    of_data = {name for kind in tasks.kinds(settings.recipe) for name in tasks.source(kind).settings}
    by_data = set(tasks.source(settings.data).settings)
    found = {}
    for name in names:
        if name in of_hosts - by_host:
            place = "a small host" if settings.host is None else f"host={settings.host}"
            found[name] = f"{_written(settings, name)} has no effect on {place}; leave it out"
        elif name in of_data - by_data:
            found[name] = f"{_written(settings, name)} has no effect on data={settings.data}; leave it out"
        elif name in of_arms - by_arms:
            owners = ", ".join(arm for arm, baseline in offered.items() if name in baseline.owns())
            found[name] = (
                f"{_written(settings, name)} has no effect with these settings and arms={','.join(arms)}: it is for "
                f"{owners}; leave it out"
            )
    return found


def _written(settings: Any, name: str) -> str:
    return f"{name}={getattr(settings, name)!r}"
