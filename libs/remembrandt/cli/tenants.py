"""`remembrandt tenants …`: who may use a service, by which keys, and how much."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from remembrandt.configuration import parse_config
from remembrandt.errors import ConfigError
from remembrandt.progress import format_bytes
from remembrandt.serving.accounts import Accounts, Keys, Limits, NewKey, Quotas, Tenant, Tenants, audit, read_audit
from remembrandt.serving.accounts.keys import SCOPES
from remembrandt.serving.config import ACCOUNTS

tenants_app = typer.Typer(no_args_is_help=True, help="Tenants of a service.")

Url = Annotated[str, typer.Option("--accounts", envvar=ACCOUNTS, help="sqlite:///<path> or postgresql+psycopg://…")]
Name = Annotated[str, typer.Argument(help="The tenant's name.")]
KeyId = Annotated[str, typer.Argument(help="The key's id: what stands between the first two underscores.")]
Scopes = Annotated[str, typer.Option(help="Comma-separated, out of " + ", ".join(SCOPES) + ".")]
Days = Annotated[float | None, typer.Option(min=0.001, help="Until the key expires; never if absent.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
_DEFAULT_SCOPES = "read,generate,write"


@tenants_app.command()
def create(
    name: Name,
    accounts: Url = "",
    scopes: Scopes = _DEFAULT_SCOPES,
    days: Days = None,
    limit: Annotated[list[str] | None, typer.Option(help="Such as images_per_day=100; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes a tenant and its first key, which is shown this once."""
    opened = _open(accounts)
    limits = parse_config(Limits, _limits(limit), "--limit")
    _check_scopes(scopes)
    tenant = Tenants(opened).create(name, limits)
    key = Keys(opened).create(tenant.id, scopes.split(","), "first", days)
    audit(opened, "tenant.create", tenant.id, name=name)
    _show_key(tenant, key, as_json)


@tenants_app.command("list")
def list_tenants(accounts: Url = "", as_json: AsJson = False) -> None:
    """All tenants, and what they use."""
    opened = _open(accounts)
    quotas = Quotas(opened)
    found = [(tenant, quotas.used_today(tenant.id)) for tenant in Tenants(opened).all()]
    if as_json:
        print(json.dumps([_as_json(tenant, images) for tenant, images in found]))
        return
    for tenant, images in found:
        shut = "  (shut out)" if tenant.disabled else ""
        print(
            f"{tenant.name:<24} {tenant.used_rows:>12,} rows  {format_bytes(tenant.used_bytes):>9}  "
            f"{images:>6,} images today{shut}"
        )


@tenants_app.command("set")
def set_limits(
    name: Name,
    limit: Annotated[list[str], typer.Argument(help="Such as images_per_day=100 max_rows=1000000.")],
    accounts: Url = "",
    as_json: AsJson = False,
) -> None:
    """Changes what a tenant may use."""
    opened = _open(accounts)
    values = _limits(limit)
    parse_config(Limits, values, "limits")
    tenant = Tenants(opened).change(name, **values)
    audit(opened, "tenant.set", tenant.id, **values)
    _show(tenant, as_json)


@tenants_app.command()
def disable(name: Name, accounts: Url = "", as_json: AsJson = False) -> None:
    """Shuts a tenant out; nothing of it is removed."""
    _switch(name, accounts, True, as_json)


@tenants_app.command()
def enable(name: Name, accounts: Url = "", as_json: AsJson = False) -> None:
    """Lets a tenant in again."""
    _switch(name, accounts, False, as_json)


@tenants_app.command()
def key(
    name: Name,
    accounts: Url = "",
    scopes: Scopes = _DEFAULT_SCOPES,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Days = None,
    as_json: AsJson = False,
) -> None:
    """Makes another key, which is shown this once."""
    opened = _open(accounts)
    tenant = Tenants(opened).find(name)
    made = Keys(opened).create(tenant.id, scopes.split(","), label, days)
    audit(opened, "key.create", made.id, tenant=tenant.name)
    _show_key(tenant, made, as_json)


@tenants_app.command()
def keys(name: Name, accounts: Url = "", as_json: AsJson = False) -> None:
    """A tenant's keys, without their secrets."""
    opened = _open(accounts)
    found = Keys(opened).all(Tenants(opened).find(name).id)
    if as_json:
        print(json.dumps([{"id": k.id, "label": k.label, "scopes": k.scopes, "revoked": k.revoked} for k in found]))
        return
    for known in found:
        ends = "revoked" if known.revoked else "never ends" if known.expires_at is None else f"ends {known.expires_at}"
        print(f"{known.id}  {','.join(known.scopes):<32} {ends}  {known.label}")


@tenants_app.command()
def rotate(name: Name, key_id: KeyId, accounts: Url = "", as_json: AsJson = False) -> None:
    """Makes a new key with the same scopes; the old one ends within a day."""
    opened = _open(accounts)
    tenant = Tenants(opened).find(name)
    made = Keys(opened).rotate(tenant.id, key_id)
    audit(opened, "key.rotate", key_id, new=made.id)
    _show_key(tenant, made, as_json)


@tenants_app.command()
def revoke(name: Name, key_id: KeyId, accounts: Url = "") -> None:
    """Ends a key at once."""
    opened = _open(accounts)
    Keys(opened).revoke(Tenants(opened).find(name).id, key_id)
    audit(opened, "key.revoke", key_id)
    print(f"revoked {key_id}")


@tenants_app.command("audit")
def show_audit(
    name: Annotated[str | None, typer.Argument(help="Of one tenant; all if absent.")] = None,
    accounts: Url = "",
    limit: Annotated[int, typer.Option(min=1, help="Entries.")] = 100,
    as_json: AsJson = False,
) -> None:
    """What was changed, and by which key; newest first."""
    opened = _open(accounts)
    tenant_id = None if name is None else Tenants(opened).find(name).id
    for event in read_audit(opened, tenant_id, limit):
        if as_json:
            print(json.dumps({**event.__dict__, "at": event.at.isoformat()}))
        else:
            print(
                f"{event.at:%Y-%m-%d %H:%M:%S}  {event.action:<18} {event.target}  {event.key_id or '(command line)'}"
            )


def _open(url: str) -> Accounts:
    if not url:
        raise ConfigError(f"name the accounts by --accounts sqlite:///<path>, or set {ACCOUNTS}")
    return Accounts(url)


def _limits(texts: Sequence[str] | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not value.replace("_", "").isdigit():
            raise ConfigError(f"limit '{text}' must look like images_per_day=100")
        values[name] = int(value)
    return values


def _check_scopes(scopes: str) -> None:
    """Before a tenant is made whose key then cannot be."""
    unknown = [scope for scope in scopes.split(",") if scope not in SCOPES]
    if unknown:
        raise ConfigError(f"scopes {', '.join(unknown) or '(none)'}: choose from {', '.join(SCOPES)}")


def _switch(name: str, url: str, disabled: bool, as_json: bool) -> None:
    opened = _open(url)
    tenant = Tenants(opened).change(name, disabled=disabled)
    audit(opened, "tenant.disable" if disabled else "tenant.enable", tenant.id)
    _show(tenant, as_json)


def _show(tenant: Tenant, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_json(tenant, None)))
        return
    limits = ", ".join(f"{name} {value:,}" for name, value in tenant.limits.model_dump().items())
    print(f"{tenant.name}{' (shut out)' if tenant.disabled else ''}: {limits}")


def _show_key(tenant: Tenant, made: NewKey, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"tenant": tenant.name, "key": made.secret, "id": made.id, "scopes": made.scopes}))
        return
    print(f"{made.secret}")


def _as_json(tenant: Tenant, images_today: int | None) -> dict[str, Any]:
    own = {
        "name": tenant.name,
        "id": tenant.id,
        "rows": tenant.used_rows,
        "bytes": tenant.used_bytes,
        "disabled": tenant.disabled,
        "limits": tenant.limits.model_dump(),
    }
    return own if images_today is None else {**own, "images_today": images_today}
