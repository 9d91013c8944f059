// Counted words in an enclave: the app's sealed table, digests, random numbers and the clock from JavaScript.
import { digest as hash } from 'privasys:enclave-os/crypto@0.1.0';
import { get, put } from 'privasys:enclave-os/kv@0.1.0';

const bytes = (text) => new TextEncoder().encode(text);
const text = (data) => new TextDecoder().decode(data);

export function count(given) {
  const seen = [];
  for (const word of given.split(/\s+/).filter(Boolean)) {
    const entry = get(bytes(word));
    const times = (entry ? Number(text(entry.value)) : 0) + 1;
    put(bytes(word), bytes(String(times)), undefined);
    seen.push([word, times]);
  }
  return seen;
}

export function digest(given) {
  return hash('sha256', bytes(given));
}

export function chance() {
  return Math.random();
}

export function today() {
  return new Date().toISOString().slice(0, 10);
}
