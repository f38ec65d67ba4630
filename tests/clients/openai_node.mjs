// What the official client for Node makes of the server's answers.
//
// Run by the end-to-end tests, with JSON on standard input: url and keyed_url of two servers of the demo
// model (the second asks for key), embeddings_url of a server of the encoder bert, prompt and reply (text
// of the greedy answer), ids (tokens of the prompt as the chat template writes it).

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const facts = JSON.parse(readFileSync(0, "utf8"));
// The package lies where the tests keep what they fetch, not beside this file.
const require = createRequire(`${process.env.TREFOIL_NPM}/package.json`);
const { default: OpenAI } = require("openai");

const settings = { baseURL: facts.url, apiKey: "none", maxRetries: 0 };
const client = new OpenAI(settings);
const messages = [{ role: "user", content: facts.prompt }];
const chatOf = (more) =>
  client.chat.completions.create({ model: "demo", temperature: 0, messages, ...more });

async function expectError(kind, code, param, call) {
  await assert.rejects(call, (error) => {
    assert.equal(error.constructor, kind, String(error));
    assert.deepEqual([error.code, error.param], [code, param]);
    assert.ok(error.requestID ?? error.headers?.get?.("x-request-id"));
    return true;
  });
}

async function chat() {
  const answer = await chatOf({});
  assert.equal(answer.object, "chat.completion");
  const [choice] = answer.choices;
  assert.equal(choice.message.content, facts.reply);
  assert.deepEqual([choice.message.role, choice.finish_reason], ["assistant", "stop"]);
  const { usage } = answer;
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  assert.ok(answer._request_id);
  const two = await chatOf({ n: 2, max_tokens: 2, seed: 3 });
  assert.deepEqual(two.choices.map((each) => each.index), [0, 1]);
}

async function streaming() {
  let text = "";
  let last = null;
  const stream = await chatOf({ stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    last = chunk;
  }
  assert.equal(text, facts.reply);
  assert.ok(last.choices.length === 0 && last.usage.completion_tokens > 0);
  // The helper that joins events by itself.
  const helper = client.chat.completions.stream({ model: "demo", temperature: 0, messages });
  assert.equal(await helper.finalContent(), facts.reply);
  // Leaving a stream early leaves nothing behind.
  const endless = await chatOf({ stream: true, max_tokens: 1800, ignore_eos: true });
  for await (const chunk of endless) {
    assert.ok(chunk.id);
    break;
  }
}

async function logprobs() {
  const answer = await chatOf({ logprobs: true, top_logprobs: 3, max_tokens: 3 });
  const { content } = answer.choices[0].logprobs;
  assert.equal(content.length, 3);
  for (const token of content) {
    assert.equal(token.top_logprobs.length, 3);
    assert.equal(token.logprob, token.top_logprobs[0].logprob);
  }
  const bytes = Buffer.from(content.flatMap((token) => token.bytes));
  assert.equal(bytes.toString(), answer.choices[0].message.content);
}

async function completions() {
  const ask = { model: "demo", temperature: 0, prompt: facts.ids, max_tokens: 100 };
  const answer = await client.completions.create({ ...ask, logprobs: 2 });
  const [choice] = answer.choices;
  assert.equal(choice.text, facts.reply);
  assert.equal(choice.logprobs.tokens.join(""), facts.reply);
  assert.equal(choice.logprobs.text_offset[0], 0);
  let text = "";
  for await (const chunk of await client.completions.create({ ...ask, stream: true })) {
    text += chunk.choices[0]?.text ?? "";
  }
  assert.equal(text, facts.reply);
}

async function embeddings() {
  const encoder = new OpenAI({ ...settings, baseURL: facts.embeddings_url });
  const input = ["a lemon tree", "a fast car"];
  // By default the client asks for base64 and makes numbers of it.
  const made = await encoder.embeddings.create({ model: "bert", input });
  const plain = await encoder.embeddings.create({ model: "bert", input, encoding_format: "float" });
  for (const [index, { embedding }] of made.data.entries()) {
    const other = plain.data[index].embedding;
    assert.equal(embedding.length, other.length);
    embedding.forEach((value, at) => assert.ok(Math.abs(value - other[at]) < 1e-6));
    const length = embedding.reduce((sum, value) => sum + value * value, 0);
    assert.ok(Math.abs(length - 1) < 1e-4);
  }
}

async function models() {
  const listed = [];
  for await (const model of client.models.list()) {
    listed.push(model.id);
  }
  assert.deepEqual(listed, ["demo"]);
  assert.equal((await client.models.retrieve("demo")).owned_by, "trefoil");
}

async function errors() {
  const bad = OpenAI.BadRequestError;
  await expectError(bad, "invalid_value", "top_p", () => chatOf({ top_p: 9 }));
  await expectError(bad, "invalid_value", "messages", () => chatOf({ messages: [] }));
  const long = () => chatOf({ max_tokens: 100_000 });
  await expectError(bad, "context_length_exceeded", "messages", long);
  const missing = OpenAI.NotFoundError;
  await expectError(missing, "model_not_found", "model", () => client.models.retrieve("dmo"));
  const image = () => client.images.generate({ model: "demo", prompt: "x" });
  await expectError(missing, "not_found", null, image);
  const keyed = { ...settings, baseURL: facts.keyed_url };
  const right = new OpenAI({ ...keyed, apiKey: facts.key });
  assert.equal((await right.models.list()).data.length, 1);
  const wrong = new OpenAI({ ...keyed, apiKey: "wrong" });
  const refused = OpenAI.AuthenticationError;
  await expectError(refused, "invalid_api_key", null, () => wrong.models.list());
}

for (const test of [chat, streaming, logprobs, completions, embeddings, models, errors]) {
  await test();
  console.log(`${test.name}: ok`);
}
