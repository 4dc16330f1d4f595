// Uses a running Strata with the OpenAI client for JavaScript and prints what it saw as one line of JSON.
// Usage: node scenario.mjs BASE_URL KEY PICTURE_URL DATA_SET_FILE
import fs from "node:fs";
import OpenAI from "openai";

const [baseURL, apiKey, picture, file] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [
  {
    role: "user",
    content: [
      { type: "text", text: "Which digit is it?" },
      { type: "image_url", image_url: { url: picture } },
    ],
  },
];
const asked = { model: "strata", messages, max_tokens: 6 };
const seen = {};

const { data: whole, response } = await client.chat.completions.create(asked).withResponse();
seen.answer = whole.choices[0].message.content;
seen.fingerprint = whole.system_fingerprint;
seen.version = response.headers.get("x-adapter-version");
seen.usage = whole.usage;

seen.streamed = "";
const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  seen.streamed += chunk.choices[0]?.delta?.content ?? "";
  seen.streamedUsage = chunk.usage ?? seen.streamedUsage;
}

const left = await client.chat.completions.create({ ...asked, max_tokens: 900, stream: true });
for await (const chunk of left) {
  if (chunk.choices[0]?.delta?.content) break; // leaving a stream ends its request
}

const several = await client.chat.completions.create({
  ...asked, n: 2, seed: 3, temperature: 1, logprobs: true, top_logprobs: 2,
});
seen.choices = several.choices.map((choice) => choice.index);
seen.logprobs = several.choices[0].logprobs.content.length;

seen.models = [];
for await (const model of client.models.list()) seen.models.push(model.id);

const sent = await client.files.create({ file: fs.createReadStream(file), purpose: "fine-tune" });
const again = await client.files.create({ file: fs.createReadStream(file), purpose: "fine-tune" });
seen.files = [];
for await (const one of client.files.list({ limit: 1 })) seen.files.push(one.id);
seen.sent = [again.id, sent.id];
seen.contentBytes = (await (await client.files.content(sent.id)).arrayBuffer()).byteLength;

const job = await client.fineTuning.jobs.create({
  training_file: sent.id, model: "strata", metadata: { task: "colors" },
});
seen.job = { status: job.status, task: job.metadata.task };
seen.jobs = [];
for await (const one of client.fineTuning.jobs.list({ limit: 1 })) seen.jobs.push(one.id === job.id);
seen.events = 0;
for await (const event of client.fineTuning.jobs.listEvents(job.id)) seen.events += event.id ? 1 : 0;
seen.checkpoints = (await client.fineTuning.jobs.checkpoints.list(job.id)).data.length;
seen.cancelled = (await client.fineTuning.jobs.cancel(job.id)).status;
seen.deleted = (await client.files.delete(sent.id)).deleted;

seen.errors = [];
for (const wrong of [{ model: "gpt-4o" }, { temperature: -1 }, { messages: [] }]) {
  try {
    await client.chat.completions.create({ ...asked, ...wrong });
  } catch (error) {
    seen.errors.push({
      kind: error.constructor.name, status: error.status, code: error.code, param: error.param, id: error.requestID,
    });
  }
}
console.log(JSON.stringify(seen));
