"""Settings from the environment (CONTRACT.md section 8)."""

from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(Exception):
    """A setting is bad. The text names the variable and says what to do."""


class Settings(BaseSettings):
    """What the environment says. A URL that is unset means the embedded server under `data_dir`."""

    model_config = SettingsConfigDict(
        env_prefix="METERING_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    database_url: str | None = None
    """`postgresql://user:password@host/name`. Role `metering_app` may do what the product needs; `migrate` needs the owner."""
    redis_url: str | None = None
    """`redis://`, `rediss://` or `unix://`."""
    data_dir: Path = Field(default=Path(".metering"))
    """Where the embedded servers keep their data."""
    metrics_host: str = "127.0.0.1"
    """Where a role's metrics are served; every interface is `0.0.0.0`."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """The port of a role's metrics; 0 takes a free one."""

    @field_validator("database_url")
    @classmethod
    def _name_the_driver(cls, value: str | None) -> str | None:
        if value is None:
            return None
        scheme, separator, rest = value.partition("://")
        if not separator or scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
            raise ValueError("must be a Postgres URL, postgresql://user:password@host:5432/name")
        return f"postgresql+psycopg://{rest}"

    @field_validator("redis_url")
    @classmethod
    def _check_scheme(cls, value: str | None) -> str | None:
        if value is not None and value.partition("://")[0] not in {"redis", "rediss", "unix"}:
            raise ValueError("must be a Redis or Valkey URL, redis://host:6379/0")
        return value

    @field_validator("data_dir")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()


def read_settings() -> Settings:
    """Read the environment. Raises SettingsError; its text never holds a value, which may be a secret."""
    try:
        return Settings()
    except ValidationError as error:
        problems = (
            f"METERING_{'_'.join(map(str, problem['loc'])).upper()} {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError("; ".join(problems) + ".") from None
