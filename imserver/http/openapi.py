"""The OpenAPI 3.1 document, made from the very same routes and structs that serve (contract: HTTP)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from imserver.http.problems import MEDIA, ProblemDocument
from imserver.http.routes import Route

_REFERENCE = "#/components/schemas/{name}"
_SCHEMES: dict[str, dict[str, str]] = {
    "key": {"type": "http", "scheme": "bearer", "description": "The API key of a channel."},
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The token of a user.",
    },
    "cluster": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token that the servers of one cluster sign for each other.",
    },
}
_PROBLEMS = {
    400: "Not JSON, not UTF-8, or a broken query.",
    401: "No or a wrong key or token.",
    403: "Known, but not allowed.",
    404: "No such thing.",
    409: "The state of the thing forbids it.",
    413: "The body is too large.",
    415: "Another content type than JSON.",
    422: "Missing, ill-typed or out-of-range fields.",
    429: "Too many calls.",
    500: "A mistake of ours.",
    503: "A part that is needed is away.",
}
_HEADERS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}


def document(routes: Sequence[Route], *, title: str, version: str, description: str = "") -> dict[str, Any]:
    """The document for `routes` in their order, as what `json` encodes; the same routes give the same bytes.

    Raises TypeError when a struct cannot be described, such as one whose default is a `msgspec.Raw`.
    """
    shown = [route for route in routes if not route.hidden]
    schemas = _Schemas([ProblemDocument, *(kind for route in shown for kind in _kinds(route))])
    paths: dict[str, dict[str, Any]] = {}
    for route in shown:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    used = sorted({status for route in shown for status in _statuses(route)})
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, **({"description": description} if description else {})},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in shown)],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": {_problem_name(status): _problem(status, schemas) for status in used},
            "securitySchemes": {
                name: scheme for name, scheme in _SCHEMES.items() if any(name in _schemes(route) for route in shown)
            },
        },
    }


class _Schemas:
    """JSON schemas of all types of the document, those of structs shared under `components`."""

    def __init__(self, kinds: Sequence[Any]) -> None:
        self._kinds = list(dict.fromkeys(kinds))
        schemas, components = msgspec.json.schema_components(self._kinds, ref_template=_REFERENCE)
        self._schemas = list(schemas)
        self.components: dict[str, Any] = components
        for kind, schema in zip(self._kinds, self._schemas, strict=True):
            _describe_raw(msgspec.inspect.type_info(kind), schema)
        for info in _structs([msgspec.inspect.type_info(kind) for kind in self._kinds]):
            properties = components.get(info.cls.__name__, {}).get("properties", {})
            for field in info.fields:
                if field.encode_name in properties:
                    _describe_raw(field.type, properties[field.encode_name])
        self.components = dict(sorted(components.items()))

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of one type."""
        return self._schemas[self._kinds.index(kind)]

    def fields(self, kind: Any) -> Iterator[tuple[str, bool, dict[str, Any]]]:
        """Name, whether it is required, and schema of each field of a struct."""
        schema = self.of(kind)
        if "$ref" in schema:
            schema = self.components[schema["$ref"].rpartition("/")[2]]
        for name, shape in schema.get("properties", {}).items():
            yield name, name in schema.get("required", ()), shape


def _describe_raw(info: msgspec.inspect.Type, schema: dict[str, Any]) -> None:
    """Say of a `msgspec.Raw`, which may be anything to msgspec, what it is to us: a JSON object passed on as
    it is."""
    match info:
        case msgspec.inspect.RawType() if "type" not in schema:
            schema["type"] = "object"
        case msgspec.inspect.Metadata():
            _describe_raw(info.type, schema)
        case msgspec.inspect.ListType() if isinstance(schema.get("items"), dict):
            _describe_raw(info.item_type, schema["items"])
        case msgspec.inspect.UnionType() if "anyOf" in schema:
            for one in schema["anyOf"]:
                if not one:
                    one["type"] = "object"
        case msgspec.inspect.UnionType() if any(isinstance(one, msgspec.inspect.RawType) for one in info.types):
            schema.setdefault("type", "object")


def _structs(infos: Sequence[msgspec.inspect.Type]) -> Iterator[msgspec.inspect.StructType]:
    """All struct types within `infos`, each once."""
    seen: set[type] = set()
    pending = list(infos)
    while pending:
        info = pending.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in seen:
                continue
            seen.add(info.cls)
            yield info
            pending.extend(field.type for field in info.fields)
        else:
            for name in ("type", "item_type", "key_type", "value_type"):
                if isinstance(part := getattr(info, name, None), msgspec.inspect.Type):
                    pending.append(part)
            pending.extend(getattr(info, "types", ()))


def _kinds(route: Route) -> list[Any]:
    kinds = [route.parameters.get(name, str) for name in route.names]
    kinds += [route.query, route.body_shown or route.body]
    if _is_json(route):
        kinds.append(route.answer)
    return [kind for kind in kinds if kind is not None]


def _is_json(route: Route) -> bool:
    return route.media.partition(";")[0] == "application/json"


def _schemes(route: Route) -> list[str]:
    return route.auth.split(" or ") if route.auth else []


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schemas.of(route.parameters.get(name, str))}
        for name in route.names
    ]
    if route.query is not None:
        for name, required, schema in schemas.fields(route.query):
            parameter = {"name": name, "in": "query", "required": required, "schema": schema}
            if "description" in schema:
                parameter["description"] = schema["description"]
            parameters.append(parameter)
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "tags": [route.tag],
    }
    if route.description:
        operation["description"] = route.description
    operation["security"] = [{name: []} for name in _schemes(route)]
    if parameters:
        operation["parameters"] = parameters
    shown = route.body_shown or route.body
    if shown is not None:
        content: dict[str, Any] = {"application/json": {"schema": schemas.of(shown)}}
        if route.ndjson:
            content["application/x-ndjson"] = {"schema": {"type": "string"}}
        required = any(field.required for field in msgspec.structs.fields(route.body))
        operation["requestBody"] = {"required": required, "content": content}
    operation["responses"] = {
        str(route.status): _answer(route, schemas),
        **{str(status): {"$ref": f"#/components/responses/{_problem_name(status)}"} for status in _statuses(route)},
    }
    return operation


def _operation_id(route: Route) -> str:
    words = [part.strip("{}").replace(".", "_").replace("-", "_") for part in route.path.split("/") if part]
    return "_".join([route.method.lower(), *words])


def _answer(route: Route, schemas: _Schemas) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(route.status).phrase}
    if route.status != 204:
        if _is_json(route):
            schema = {"type": "object"} if route.answer is None else schemas.of(route.answer)
        else:
            schema = {"type": "string"}
        answer["content"] = {route.media.partition(";")[0]: {"schema": schema}}
    return answer


def _statuses(route: Route) -> list[int]:
    """The statuses of problems that a route may answer with, in order."""
    statuses = set(route.problems)
    if route.query is not None:
        statuses.add(400)
    if route.auth:
        statuses |= {401, 403}
    if route.names:
        statuses.add(422)
    if route.body is not None:
        statuses |= {400, 413, 415, 422}
    if route.auth:
        statuses |= {429, 503}
    return sorted(statuses)


def _problem_name(status: int) -> str:
    return f"Problem{status}"


def _problem(status: int, schemas: _Schemas) -> dict[str, Any]:
    problem: dict[str, Any] = {
        "description": _PROBLEMS.get(status, HTTPStatus(status).phrase),
        "content": {MEDIA: {"schema": schemas.of(ProblemDocument)}},
    }
    if status in _HEADERS:
        problem["headers"] = {_HEADERS[status]: {"schema": {"type": "string"}}}
    return problem
