// Requests to the server that this page is from, with the key where one is needed.

const KEY = "trefoil-key";

/** An answer that is no success, with its status and the server's code. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let asking = null;

/** Asks for the key once, however many requests were refused. `wrong`: one was given. */
function askForKey(wrong) {
  asking ??= new Promise((resolve, reject) => {
    const dialog = document.getElementById("key-dialog");
    const form = document.getElementById("key-form");
    const input = document.getElementById("key");
    document.getElementById("key-error").textContent = wrong ? "The server does not take this key." : "";
    let used = false;
    const use = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value);
      input.value = "";
      used = true;
      dialog.close();
    };
    const closed = () => {
      form.removeEventListener("submit", use);
      asking = null;
      if (used) resolve();
      else reject(new ApiError(401, "invalid_api_key", "a key is needed"));
    };
    dialog.addEventListener("close", closed, { once: true });
    form.addEventListener("submit", use);
    dialog.showModal();
  });
  return asking;
}

/** Sends a request; resolves to the response of a success. */
export async function call(path, { body, signal } = {}) {
  for (;;) {
    const headers = {};
    const key = sessionStorage.getItem(KEY);
    if (key) headers.authorization = `Bearer ${key}`;
    if (body) headers["content-type"] = "application/json";
    const init = { method: body ? "POST" : "GET", headers, signal, cache: "no-store" };
    if (body) init.body = JSON.stringify(body);
    const response = await fetch(path, init);
    if (response.ok) return response;
    const answer = await response.json().catch(() => null);
    if (response.status === 401) {
      // Another request may have brought a key meanwhile.
      if (sessionStorage.getItem(KEY) === key) await askForKey(Boolean(key));
      continue;
    }
    const error = answer?.error;
    throw new ApiError(response.status, error?.code, error?.message ?? `status ${response.status}`);
  }
}

/** The JSON document of a path. */
export async function get(path) {
  return (await call(path)).json();
}

/** The JSON answer to a body. */
export async function post(path, body) {
  return (await call(path, { body })).json();
}

/** The objects of a stream of events, one after the other. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice(6);
      if (data === "[DONE]") return;
      const object = JSON.parse(data);
      if (object.error) throw new ApiError(response.status, object.error.code, object.error.message);
      yield object;
    }
  }
}
