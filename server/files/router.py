"""``/v1/files``: upload, list, read and delete, as the ``openai`` client does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from adapter_store.errors import InputError
from server.files.store import StoredFile, check_purpose
from server.gateway import GatewayDep
from server.jobs.protocol import list_body
from server.openapi import After, example, form_example
from server.pools import FILES
from server.uploads import received_form

router = APIRouter(prefix="/v1/files", tags=["files"])

FILE_EXAMPLE = {
    "id": "file-0193f2a4c0de1f2e3d4c5b6a79801122",
    "object": "file",
    "bytes": 120034,
    "created_at": 1732280000,
    "filename": "digits.zip",
    "purpose": "fine-tune",
    "status": "processed",
}
_READ_BYTES = 1 << 20


def file_body(record: StoredFile) -> dict[str, Any]:
    """Return one file in OpenAI's shape."""
    return {**asdict(record), "object": "file", "status": "processed", "status_details": None}


@router.post(
    "",
    summary="Upload a data set file (LLaVA JSON, JSONL, parquet, zip, tar)",
    responses=example(FILE_EXAMPLE),
    openapi_extra=form_example(purpose="fine-tune", file="binary"),
)
async def upload(request: Request, gateway: GatewayDep) -> dict[str, Any]:
    """Keep the file; it is validated when a job or ``/v1/datasets`` uses it."""
    async with received_form(request, gateway.uploads, FILES.run) as form:
        purpose = check_purpose(form.fields.get("purpose", ""))
        sent = form.file("file")
        if sent.bytes == 0:
            raise InputError("the file is empty (0 bytes)", param="file")
        record = await FILES.run(gateway.files.put, sent.path, sent.filename, purpose)
    return file_body(record)


@router.get("", summary="List files, newest first", responses=example(list_body([FILE_EXAMPLE])))
async def list_files(
    gateway: GatewayDep,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: After = None,
    order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
    purpose: Annotated[str | None, Query(max_length=40)] = None,
) -> dict[str, Any]:
    """Return a page of files behind ``after``."""
    records = await FILES.run(gateway.files.list, after, newest_first=order == "desc")
    records = [record for record in records if purpose in (None, record.purpose)]
    page = [file_body(record) for record in records[:limit]]
    return list_body(page, has_more=len(records) > limit)


@router.get("/{file_id}", summary="Show a file's record", responses=example(FILE_EXAMPLE))
async def show(file_id: str, gateway: GatewayDep) -> dict[str, Any]:
    """Return one file's record."""
    return file_body(await FILES.run(gateway.files.get, file_id))


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    responses=example("the bytes of the file", media_type="application/octet-stream"),
)
async def content(file_id: str, gateway: GatewayDep) -> StreamingResponse:
    """Send the whole file; ranges are not served."""
    stream = await FILES.run(gateway.files.open, file_id)
    headers = {
        "content-length": str(os.fstat(stream.fileno()).st_size),
        "content-disposition": "attachment",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(_read(stream), media_type="application/octet-stream", headers=headers)


@router.delete(
    "/{file_id}",
    summary="Delete a file; data sets made from it stay",
    responses=example({"id": FILE_EXAMPLE["id"], "object": "file", "deleted": True}),
)
async def delete(file_id: str, gateway: GatewayDep) -> dict[str, Any]:
    """Delete one file."""
    await FILES.run(gateway.files.delete, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def _read(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(_READ_BYTES):
            yield chunk
