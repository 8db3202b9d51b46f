// openai (npm): chat, the strict stream helper, tools, responses.
import assert from "node:assert";
import OpenAI from "openai";

const { URL: url, KEY: apiKey, MODEL: model } = process.env;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey });
const messages = [{ role: "user", content: "def read(path):" }];

const whole = await client.chat.completions.create({ model, messages, max_tokens: 32, temperature: 0 });
const stream = client.chat.completions.stream({ model, messages, max_tokens: 32, temperature: 0 });
const final = await stream.finalChatCompletion();
assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
console.log("chat, streamed and whole");

const parameters = { type: "object", properties: { city: { type: "string", maxLength: 8 } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "weather", description: "Tells the weather.", parameters } }];
const called = await client.chat.completions
  .stream({ model, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 64 })
  .finalChatCompletion();
const call = called.choices[0].message.tool_calls[0];
assert.equal(call.function.name, "weather");
assert.equal(typeof JSON.parse(call.function.arguments).city, "string");
assert.equal(called.choices[0].finish_reason, "tool_calls");
console.log("tools, streamed");

const response = await client.responses.create({ model, input: "def read(path):", max_output_tokens: 32, temperature: 0 });
let text = "";
for await (const event of await client.responses.create({
  model, input: "def read(path):", max_output_tokens: 32, temperature: 0, stream: true,
})) if (event.type === "response.output_text.delta") text += event.delta;
assert.equal(text, response.output_text);
console.log("responses, streamed and whole");

await assert.rejects(client.chat.completions.create({ model: "unknown", messages }), OpenAI.NotFoundError);
console.log("unknown model: NotFoundError");
