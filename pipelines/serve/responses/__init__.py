"""/v1/responses, OpenAI's Responses API without storage: fields, conversion, the output's items, events and answer."""
