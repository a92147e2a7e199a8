"""The obvious design, to be measured against: a FastAPI route, httpx, StreamingResponse."""

import os
import ssl

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

app = FastAPI()
client = httpx.AsyncClient(
    base_url=os.environ["UPSTREAM"], verify=ssl.create_default_context(), limits=httpx.Limits(), timeout=None
)


@app.api_route("/v1/{path:path}", methods=["GET", "POST"])
async def forward(request: Request, path: str) -> StreamingResponse:
    headers = {"authorization": "Bearer x", "content-type": request.headers.get("content-type", "")}
    outgoing = client.build_request(
        request.method, f"/v1/{path}", headers=headers, content=await request.body()
    )
    answer = await client.send(outgoing, stream=True)
    return StreamingResponse(
        answer.aiter_raw(),
        answer.status_code,
        {"content-type": answer.headers.get("content-type", "")},
        background=BackgroundTask(answer.aclose),
    )


uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning")
