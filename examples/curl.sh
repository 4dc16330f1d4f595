#!/usr/bin/env bash
# The short way: a picture and a question in, a line of JSON out; then what is served, and how well it does.
# Usage: examples/curl.sh PICTURE QUESTION
# Environment: STRATA_URL (http://127.0.0.1:8000), STRATA_API_KEY if the server asks for one.
set -euo pipefail
server=${STRATA_URL:-http://127.0.0.1:8000}
picture=${1:?a picture file}
question=${2:?a question}
key="Authorization: Bearer ${STRATA_API_KEY:-none}"

curl --fail-with-body -sS -H "$key" "$server/v1/vqa" -F "image=@$picture" -F "question=$question"
echo
curl --fail-with-body -sS -H "$key" "$server/v1/models"
echo
curl --fail-with-body -sS -H "$key" "$server/v1/evaluations/matrix"
echo
