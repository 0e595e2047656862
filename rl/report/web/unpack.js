// What the page holds packed. `rl/report/packed.py` writes it.

// The page may still be read when somebody looks at its first groups.
const whole = new Promise((done) => {
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", done); else done();
});

async function unpack(id) {
  if (!document.getElementById(id)) await whole;
  const text = document.getElementById(id).textContent;
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function unpackJson(id) {
  return JSON.parse(new TextDecoder().decode(await unpack(id)));
}

const COLUMNS = { int32: Int32Array, float32: Float32Array, float16: Uint16Array };

async function unpackArrays(id) {
  const buffer = await unpack(id);
  const aligned = (size) => size + ((4 - (size % 4)) % 4);
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const found = { about: head.about };
  let at = 4 + aligned(length);
  for (const [name, dtype, count] of head.columns) {
    const values = new COLUMNS[dtype](buffer, at, count);
    found[name] = dtype === "float16" ? Float32Array.from(values, half) : values;
    at += aligned(values.byteLength);
  }
  return found;
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}

const known = new Map();

function once(id, read) {
  if (!known.has(id)) {
    known.set(id, read(id));
    known.get(id).catch(() => known.delete(id));
  }
  return known.get(id);
}
