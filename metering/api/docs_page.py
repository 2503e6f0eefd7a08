"""`/docs`: the API's description as one page that needs nobody else, no script and no other server.

Customers paste their keys into what they try out; a page of this server must run nobody else's code.
"""

import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1a1a1a; }
h2 { border-bottom: 1px solid #ccc; margin-top: 2.5rem; } h3 { margin-top: 2rem; }
h3 b { background: #1a1a1a; border-radius: 4px; color: #fff; font-size: .8rem; padding: .2rem .5rem; }
code, pre { font: .85rem/1.4 ui-monospace, monospace; background: #f4f4f4; border-radius: 4px; }
code { padding: .1rem .3rem; } pre { overflow-x: auto; padding: .7rem; } summary { cursor: pointer; margin: .4rem 0; }
table { border-collapse: collapse; width: 100%; } td, th { border: 1px solid #ddd; padding: .3rem .5rem; text-align: left; }
"""


def serve_docs(app: FastAPI) -> None:
    """Let `app` serve the page."""

    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()), headers={"Content-Security-Policy": POLICY})

    app.add_api_route("/docs", docs, include_in_schema=False, name="docs")


def page(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    return "".join(_page(document))


def _page(document: dict[str, Any]) -> Iterator[str]:
    info = document["info"]
    yield '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(info['title'])}</title><style>{STYLE}</style></head><body>"
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
    for paragraph in info["description"].split("\n\n"):
        yield f"<p>{_prose(paragraph)}</p>"
    yield '<p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>'
    tag = None
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation["tags"][0] != tag:
                tag = operation["tags"][0]
                yield f"<h2>{escape(tag)}</h2>"
            yield from _operation(document, method, path, operation)
    yield "</body></html>"


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h3><b>{method.upper()}</b> <code>{escape(path)}</code> {escape(operation['summary'])}</h3>"
    yield f"<p>{_prose(operation.get('description', ''))}</p>"
    schemes = document["components"].get("securitySchemes", {})
    for name in (name for scheme in operation.get("security", []) for name in scheme):
        yield f"<p><code>Authorization: Bearer ...</code> {_prose(schemes[name]['description'])}</p>"
    parameters = operation.get("parameters", [])
    if parameters:
        yield _table(
            ("Parameter", "In", "Type", ""),
            [
                (each["name"], each["in"], _type(document, each["schema"]), each.get("description", ""))
                for each in parameters
            ],
        )
    if "requestBody" in operation:
        (body,) = operation["requestBody"]["content"].values()
        yield from _fields(document, body["schema"])
        yield _example("Request", body["example"])
    for status, response in operation["responses"].items():
        (body,) = response["content"].values()
        yield "<details open>" if status.startswith("2") else "<details>"
        yield f"<summary><code>{status}</code> {_prose(response['description'])}</summary>"
        yield from _fields(document, body["schema"])
        for name, example in body["examples"].items():
            yield _example("" if name == "example" else name, example["value"])
        yield "</details>"


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """The fields of an object, of each that it may be."""
    for each in schema.get("anyOf", [schema]):
        resolved = _resolved(document, each)
        required = resolved.get("required", [])
        rows = [
            (
                name,
                _type(document, field) + ("" if name in required else ", optional"),
                field.get("description", ""),
            )
            for name, field in resolved.get("properties", {}).items()
        ]
        if rows:
            yield _table(("Field", "Type", ""), rows)


def _type(document: dict[str, Any], schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(document, each) for each in schema["anyOf"]))
    resolved = _resolved(document, schema)
    if "enum" in resolved or "const" in resolved:
        return " | ".join(json.dumps(each) for each in resolved.get("enum", [resolved.get("const")]))
    if resolved.get("type") == "array":
        return f"array of {_type(document, resolved['items'])}"
    name = str(resolved.get("format", resolved.get("type", "any")))
    low, high = resolved.get("minimum"), resolved.get("maximum")
    bounds = (
        f" {'' if low is None else low} to {'' if high is None else high}"
        if (low, high) != (None, None)
        else ""
    )
    default = f", default {resolved['default']}" if resolved.get("default") is not None else ""
    return f"{name}{bounds}{default}"


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][reference.rsplit("/", 1)[-1]]
    return found


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return f"<table>{_row(head, 'th')}{''.join(_row(row, 'td') for row in rows)}</table>"


def _row(cells: tuple[str, ...], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{_prose(each)}</{tag}>' for each in cells)}</tr>"


def _example(name: str, value: Any) -> str:
    title = f"<p>{_prose(name)}</p>" if name else ""
    return f"{title}<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _prose(text: str) -> str:
    """Text with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
