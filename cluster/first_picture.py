"""One picture through the official OpenAI client: `first_picture.py <url> <key file> <png>`."""

import base64
import sys
from pathlib import Path

from openai import OpenAI

url, key, out = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key=Path(key).read_text().strip())
made = client.images.generate(prompt="a red apple", extra_body={"database": "emoji", "seed": 1})
(picture,) = made.data
Path(out).write_bytes(base64.b64decode(picture.b64_json))
after = ", ".join(f"{row['caption']} ({row['licence']})" for row in picture.neighbors)
print(f"{out}: {made.size}, painted after {after}")
