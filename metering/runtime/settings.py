"""Settings from the environment (docs/reference/settings.md)."""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Final, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from metering.rules.payments import MAX_CHARGE_CENTS, MIN_CHARGE_CENTS, MIN_TOP_UP_CENTS
from metering.runtime.logs import LEVELS
from metering.runtime.secret_files import SecretFileError, SecretFiles

PREFIX: Final = "METERING_"
SECRETS: Final = (
    *("METERING_DATABASE_URL", "METERING_REDIS_URL", "METERING_TELEPHONY_TOKEN", "METERING_OPERATOR_TOKEN"),
    "METERING_OPERATOR",
    *("STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET"),
)
"""Those that may lie in a file: `NAME_FILE` names it."""

POSTGRES_PORT: Final = "5432"
DRIVER: Final = "postgresql+psycopg"
SENTINEL_SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")

_POSTGRES_SCHEMES: Final = frozenset({"postgres", "postgresql", DRIVER})
_KEY_AND_VALUE: Final = re.compile(r"\s*[a-z_]+\s*=")
_TOKEN: Final = re.compile(r"[!-~]+")
_OWN_REDIS_OPTION: Final = re.compile(r"[?&](protocol|decode_responses)=")
_STRIPE_KEY: Final = re.compile(r"(sk|rk)_(test|live)_[!-~]+")
_STRIPE_TEST_KEY: Final = "sk_test_"
_RETURN_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[!-~]+")
_STRIPE_BASE: Final = re.compile(r"https?://[^\s/?#@]+/?")


class SettingsError(Exception):
    """A setting is bad. The text names the variable and says what to do."""


class Settings(BaseSettings):
    """What the environment says. A URL that is unset means the embedded server under `data_dir`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, and the files that it names."""
        del dotenv_settings, file_secret_settings
        # What has a name of its own goes by that; the prefix is pydantic's.
        files = {
            name.removeprefix(PREFIX).lower() if name.startswith(PREFIX) else name: name for name in SECRETS
        }
        return init_settings, env_settings, SecretFiles(settings_cls, files)

    database_url: str | None = None
    """`postgresql://user:password@host/name`, several hosts with commas in between, or `host=... dbname=...` as libpq has it.

    Role `metering_app` may do what the product needs; `migrate` needs the owner. Kept as SQLAlchemy reads it.
    """
    redis_url: str | None = None
    """`redis://`, `rediss://`, `unix://`, or `redis+sentinel://host1,host2/name` (`rediss+sentinel://` for TLS)."""
    redis_port: int | None = Field(default=None, ge=1, le=65535)
    """Where the embedded Valkey of `metering up` also listens, on 127.0.0.1. Unset, only at its Unix socket."""
    data_dir: Path = Field(default=Path(".metering"))
    """Where the embedded servers keep their data."""
    metrics_host: str = "127.0.0.1"
    """Where a role's metrics are served; every interface is `0.0.0.0`."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """The port of a role's metrics; 0 takes a free one."""

    log_level: str = "info"
    """From which level on lines are logged (metering/runtime/logs.py)."""

    http_host: str = "127.0.0.1"
    """Where the API is served; every interface is `0.0.0.0`."""
    http_port: int = Field(default=8000, ge=0, le=65535)
    """The API's port; 0 takes a free one."""
    telephony_token: SecretStr | None = None
    """What telephony asks the gate with, for every org. Unset, only an org's own key opens its gate."""
    operator: SecretStr | None = None
    """The token of the operator whose commands these are."""
    operator_token: SecretStr | None = None
    """What opens the operators' page. Unset, nothing does."""
    trusted_proxies: str | None = None
    """Whose `X-Forwarded-For` is believed: addresses or networks, with commas in between. Unset, nobody's."""
    top_up_min_cents: int = Field(default=MIN_TOP_UP_CENTS, ge=MIN_CHARGE_CENTS, le=MAX_CHARGE_CENTS)
    """The smallest top-up."""
    top_up_max_cents: int = Field(default=MAX_CHARGE_CENTS, ge=MIN_CHARGE_CENTS, le=MAX_CHARGE_CENTS)
    """The largest top-up."""
    return_url: str | None = None
    """Where a bank that wanted the whole window sends a customer back to after 3D Secure; an app's own scheme will do, too."""

    stripe_api_key: SecretStr | None = Field(default=None, validation_alias="STRIPE_API_KEY")
    """A secret key of Stripe's, `sk_...`, or a restricted one, `rk_...`."""
    stripe_webhook_secret: SecretStr | None = Field(default=None, validation_alias="STRIPE_WEBHOOK_SECRET")
    """What webhooks are signed with; several with commas in between, while one is being changed for another."""
    stripe_api_base: str | None = Field(default=None, validation_alias="STRIPE_API_BASE")
    """Another server than Stripe's, for tests: takes only a key that can't charge real cards."""

    @property
    def trusted_proxy_networks(self) -> tuple[str, ...]:
        """Every address or network whose word is believed on where a request came from."""
        return _parts(self.trusted_proxies or "")

    @property
    def stripe_webhook_secrets(self) -> tuple[str, ...]:
        """Every secret that a webhook may be signed with."""
        text = "" if self.stripe_webhook_secret is None else self.stripe_webhook_secret.get_secret_value()
        return _parts(text)

    @field_validator("database_url")
    @classmethod
    def _name_the_driver(cls, value: str | None) -> str | None:
        if value is None:
            return None
        scheme, separator, rest = value.partition("://")
        if separator and scheme in _POSTGRES_SCHEMES:
            several = "," in rest.partition("/")[0].rpartition("@")[2]
            return from_libpq(f"postgresql://{rest}") if several else f"{DRIVER}://{rest}"
        if _KEY_AND_VALUE.match(value):
            return from_libpq(value)
        raise ValueError("must be a Postgres URL, postgresql://user:password@host:5432/name")

    @field_validator("redis_url")
    @classmethod
    def _check_scheme(cls, value: str | None) -> str | None:
        if value is None:
            return None
        scheme = value.partition("://")[0]
        if scheme == "redis+cluster":
            raise ValueError("can't be redis+cluster:// yet: use a server without cluster mode, or Sentinel")
        if scheme not in {"redis", "rediss", "unix", *SENTINEL_SCHEMES}:
            raise ValueError(
                "must be a Redis or Valkey URL, redis://host:6379/0 or redis+sentinel://host1:26379,host2:26379/name"
            )
        if said := _OWN_REDIS_OPTION.search(value):
            raise ValueError(f"must not say {said[1]}: this program decides how it reads answers")
        if scheme in SENTINEL_SCHEMES:
            from metering.client.sentinel import read_sentinel_url  # noqa: PLC0415 - only here: redis-py takes a while to load

            read_sentinel_url(value)
        return value

    @field_validator("data_dir")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("log_level")
    @classmethod
    def _check_level(cls, value: str) -> str:
        level = value.strip().lower()
        if level not in LEVELS:
            raise ValueError(f"must be one of {', '.join(LEVELS)}")
        return level

    @field_validator("telephony_token", "operator", "operator_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _TOKEN.fullmatch(value.get_secret_value()):
            raise ValueError("must be ASCII characters without spaces: it is sent in a header")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str | None) -> str | None:
        try:
            for part in _parts(value or ""):
                ip_network(part)
        except ValueError:
            raise ValueError("must be addresses or networks, 172.16.0.0/12, with commas in between") from None
        return value

    @field_validator("return_url")
    @classmethod
    def _check_return_url(cls, value: str | None) -> str | None:
        if value is not None and not _RETURN_URL.fullmatch(value):
            raise ValueError("must be an address that a browser can open, https://app.example.com/billing")
        return value

    @field_validator("stripe_api_key")
    @classmethod
    def _check_stripe_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _STRIPE_KEY.fullmatch(value.get_secret_value()):
            raise ValueError(
                "must be a secret key of Stripe's, sk_test_... or sk_live_... (or a restricted one, rk_...)"
            )
        return value

    @field_validator("stripe_webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, value: SecretStr | None) -> SecretStr | None:
        secrets = [] if value is None else [part.strip() for part in value.get_secret_value().split(",")]
        if not all(_TOKEN.fullmatch(secret) for secret in secrets):
            raise ValueError(
                "must be the signing secret of Stripe's webhook, whsec_..., or several with commas in between"
            )
        return value

    @field_validator("stripe_api_base")
    @classmethod
    def _check_stripe_base(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _STRIPE_BASE.fullmatch(value):
            raise ValueError("must be a server's address, http://host:port")
        return value.removesuffix("/")

    @model_validator(mode="after")
    def _check_stripe(self) -> Self:
        key = None if self.stripe_api_key is None else self.stripe_api_key.get_secret_value()
        if self.stripe_api_base is not None and not (key or "").startswith(_STRIPE_TEST_KEY):
            raise ValueError(
                "STRIPE_API_BASE takes only a key that begins with sk_test_: set STRIPE_API_KEY to one, or unset STRIPE_API_BASE"
            )
        return self

    @model_validator(mode="after")
    def _check_redis_port(self) -> Self:
        if self.redis_port is not None and self.redis_url is not None:
            raise ValueError(
                "METERING_REDIS_PORT is the embedded Valkey's, and METERING_REDIS_URL names another server: unset one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.top_up_min_cents > self.top_up_max_cents:
            raise ValueError("METERING_TOP_UP_MIN_CENTS must not be more than METERING_TOP_UP_MAX_CENTS")
        return self


def from_libpq(conninfo: str) -> str:
    """A URL as SQLAlchemy reads it, of one with several hosts, or of keys and values. Raises ValueError, which quotes nothing."""
    from psycopg import ProgrammingError  # noqa: PLC0415 - only here: the driver takes a while to load
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415
    from sqlalchemy import URL  # noqa: PLC0415

    try:
        said = {key: str(value) for key, value in conninfo_to_dict(conninfo).items() if value is not None}
    except ProgrammingError:
        raise ValueError(
            "is not what libpq reads: postgresql://user:password@host1:5432,host2:5432/name or host=... dbname=... user=..."
            " (are `@`, `:`, `/` and the like in a URL's password percent-encoded?)"
        ) from None
    user, password, database = (said.pop(key, None) for key in ("user", "password", "dbname"))
    if "host" in said:
        hosts, ports = said["host"].split(","), said.get("port", "").split(",")
        if len(ports) == 1:
            ports *= len(hosts)
        if len(ports) != len(hosts):
            raise ValueError(
                f"names {len(hosts)} hosts and {len(ports)} ports: it must be one for each, or one for all"
            )
        if not all(port.isdecimal() or not port for port in ports):
            raise ValueError("names a port that is not a number")
        said["port"] = ",".join(port or POSTGRES_PORT for port in ports)
    url = URL.create(DRIVER, user, password, database=database, query=said)
    return url.render_as_string(hide_password=False)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for each in text.split(",") if (part := each.strip()))


def read_settings() -> Settings:
    """Read the environment. Raises SettingsError; its text never holds a value, which may be a secret."""
    try:
        return Settings()
    except SecretFileError as error:
        raise SettingsError(str(error)) from error
    except ValidationError as error:
        problems = (
            f"{_variable(problem['loc'])} {problem['msg'].removeprefix('Value error, ')}".lstrip()
            for problem in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError("; ".join(problems) + ".") from None


def _variable(location: tuple[int | str, ...]) -> str:
    """The environment's name for a field; none where the problem is about several, and names them itself."""
    name = "_".join(map(str, location)).upper()
    return name if not name or name.startswith("STRIPE_") else f"{PREFIX}{name}"
