"""Settings: each bad one is named, with what to do, and no value is ever shown."""

import os
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from db.postgres.engine import psycopg_url
from metering.runtime.settings import SECRETS, SettingsError, read_settings

WORD = "s3cr3t"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("METERING_", "STRIPE_")):
            monkeypatch.delenv(name)


def test_what_is_unset_has_the_contract_s_default() -> None:
    settings = read_settings()
    assert (settings.http_host, settings.http_port) == ("127.0.0.1", 8000)
    assert (settings.top_up_min_cents, settings.top_up_max_cents) == (500, 99_999_999)
    assert settings.telephony_token is settings.operator_token is settings.stripe_api_key is None
    assert settings.stripe_webhook_secrets == ()


def test_several_webhook_secrets_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_old, whsec_new")
    assert read_settings().stripe_webhook_secrets == ("whsec_old", "whsec_new")


def test_another_server_than_stripe_s_takes_only_test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_API_BASE", "http://127.0.0.1:12111/")
    for key in ("sk_live_x", "rk_test_x", ""):
        monkeypatch.setenv("STRIPE_API_KEY", key)
        with pytest.raises(
            SettingsError, match=r"^STRIPE_API_BASE takes only a key that begins with sk_test_"
        ):
            read_settings()
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_x")
    assert read_settings().stripe_api_base == "http://127.0.0.1:12111"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRIPE_API_KEY", f"pk_test_{WORD}"),
        ("STRIPE_API_KEY", WORD),
        ("STRIPE_WEBHOOK_SECRET", f"whsec_{WORD},"),
        ("STRIPE_WEBHOOK_SECRET", f"whsec_{WORD} x"),
        ("STRIPE_API_BASE", f"ftp://{WORD}"),
        ("STRIPE_API_BASE", f"http://user:{WORD}@host"),
        ("METERING_TELEPHONY_TOKEN", f"{WORD} x"),
        ("METERING_OPERATOR_TOKEN", f"{WORD}é"),
        ("METERING_HTTP_PORT", "65536"),
        ("METERING_HTTP_PORT", "http"),
        ("METERING_TOP_UP_MIN_CENTS", "49"),
        ("METERING_TOP_UP_MAX_CENTS", "100000000"),
        ("METERING_TOP_UP_MAX_CENTS", "499"),
    ],
)
def test_a_bad_setting_is_named_and_not_shown(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        read_settings()
    assert name in str(refused.value)
    assert WORD not in str(refused.value)


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", f"sk_test_{WORD}")
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", f"whsec_{WORD}")
    monkeypatch.setenv("METERING_TELEPHONY_TOKEN", WORD)
    assert WORD not in repr(read_settings())


@pytest.mark.parametrize(
    ("said", "host", "port"),
    [
        ("postgresql://u:p%40@h1:5432,h2:5433/metering?sslmode=disable", "h1,h2", "5432,5433"),
        ("postgres://u:p%40@h1,[::1]:6000/metering", "h1,::1", "5432,6000"),
        ("host=h1,h2 port=6000 dbname=metering user=u password=p@", "h1,h2", "6000,6000"),
        ("host=/run/postgresql dbname=metering user=u password=p@", "/run/postgresql", "5432"),
    ],
)
def test_postgres_may_be_named_as_libpq_has_it(
    monkeypatch: pytest.MonkeyPatch, said: str, host: str, port: str
) -> None:
    """Several hosts, of which the one that writes is taken; keys and values instead of a URL."""
    monkeypatch.setenv("METERING_DATABASE_URL", said)
    read = read_settings().database_url
    assert read is not None
    given = conninfo_to_dict(psycopg_url(make_url(read)))
    named = {"host": host, "port": port, "dbname": "metering", "user": "u", "password": "p@"}
    assert given == named | ({"sslmode": "disable"} if "sslmode" in said else {})


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (f"host=h1,h2,h3 port=1,2 password={WORD}", "names 3 hosts and 2 ports"),
        (f"host=h1 pasword={WORD}", "is not what libpq reads"),
        (f"postgresql://u:{WORD}@h1,h2:x/name", "names a port that is not a number"),
        (f"mysql://u:{WORD}@h1/name", "must be a Postgres URL"),
    ],
)
def test_a_postgres_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, said: str, why: str
) -> None:
    monkeypatch.setenv("METERING_DATABASE_URL", said)
    with pytest.raises(SettingsError, match=f"^METERING_DATABASE_URL {why}") as raised:
        read_settings()
    assert WORD not in str(raised.value)


IN_FILES = {
    "METERING_DATABASE_URL": "postgresql://u:p@h/d",
    "METERING_REDIS_URL": "redis://:p@h",
    "METERING_TELEPHONY_TOKEN": "t",
    "METERING_OPERATOR": "op_x",
    "METERING_OPERATOR_TOKEN": "o",
    "STRIPE_API_KEY": "sk_test_x",
    "STRIPE_WEBHOOK_SECRET": "whsec_x,whsec_y",
}


def test_secrets_may_lie_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert IN_FILES.keys() == set(SECRETS)
    for name, value in IN_FILES.items():
        monkeypatch.setenv(name, value)
    from_variables = read_settings()
    for name, value in IN_FILES.items():
        monkeypatch.setenv(name, "")
        (tmp_path / name).write_text(f"{value}\r\n")
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))
    assert read_settings() == from_variables
    assert from_variables.operator_token is not None
    assert not any(value in repr(read_settings()) for value in ("sk_test_x", "whsec_x"))


def test_an_empty_file_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        (tmp_path / "empty").write_text("\n")
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "empty"))
        assert getattr(read_settings(), name.removeprefix("METERING_").lower()) is None
        monkeypatch.setenv(f"{name}_FILE", "")
    assert read_settings().database_url is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "which can't be read (No such file or directory)"),
        (b"a\nb\n", "more than one line"),
        (b"\xff" + WORD.encode(), "no text in UTF-8"),
        (b"x" * 70_000, "more than one line"),
        (WORD.encode(), "STRIPE_API_KEY must be a secret key"),
    ],
)
def test_a_bad_file_is_named_and_not_shown(
    content: bytes | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("STRIPE_API_KEY_FILE", str(path))
    with pytest.raises(SettingsError) as raised:
        read_settings()
    assert said in str(raised.value)
    assert "STRIPE_API_KEY" in str(raised.value)
    assert WORD not in str(raised.value)


def test_a_variable_and_its_file_are_not_both_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("a")
    monkeypatch.setenv("METERING_TELEPHONY_TOKEN", "b")
    monkeypatch.setenv("METERING_TELEPHONY_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(SettingsError, match="are both set: unset one"):
        read_settings()
