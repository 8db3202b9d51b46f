// ai (npm, Vercel's SDK) with @ai-sdk/openai-compatible and @ai-sdk/openai: text, streams, objects, tools, responses.
import assert from "node:assert";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const { URL: url, KEY: apiKey, MODEL: name } = process.env;
const baseURL = `${url}/v1`;
const model = createOpenAICompatible({ name: "served", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true })(name);
const given = { model, prompt: "def read(path):", maxOutputTokens: 32, temperature: 0 };

const whole = await generateText(given);
const stream = streamText(given);
let text = "";
for await (const piece of stream.textStream) text += piece;
assert.equal(text, whole.text);
assert.ok((await stream.usage).outputTokens > 0);
console.log("text, streamed and whole, with usage");

const schema = z.object({ name: z.string().max(12), age: z.number().int() });
const { object } = await generateObject({ ...given, schema, maxOutputTokens: 200 });
assert.equal(typeof object.name, "string");
console.log("an object for a schema");

const weather = tool({ description: "Tells the weather.", inputSchema: z.object({ city: z.string().max(8) }) });
const providerOptions = { served: { parallel_tool_calls: false } };
const called = await generateText({ ...given, tools: { weather }, toolChoice: "required", maxOutputTokens: 64, providerOptions });
assert.equal(called.toolCalls[0].toolName, "weather");
assert.equal(typeof called.toolCalls[0].input.city, "string");
assert.equal(called.finishReason, "tool-calls");
console.log("tools");

const openai = createOpenAI({ baseURL, apiKey });
assert.equal((await generateText({ ...given, model: openai.chat(name) })).text, whole.text);
assert.equal((await generateText({ ...given, model: openai(name) })).text, whole.text);
console.log("@ai-sdk/openai over chat and over responses");
