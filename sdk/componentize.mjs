// A core module and its world into a component: node componentize.mjs CORE.wasm OUT.wasm WORLD WIT [ADAPTER.wasm]
// The adapter makes WASI preview 1, which C libraries speak, into WASI 0.2.
import { readFileSync, writeFileSync } from 'node:fs';
import { componentEmbed, componentNew } from '@bytecodealliance/jco';

const [core, out, world, wit, adapter] = process.argv.slice(2);
const embedded = await componentEmbed({
  binary: readFileSync(core), witSource: readFileSync(wit, 'utf8'), world, stringEncoding: 'utf8', dummy: false,
  metadata: [],
});
const adapters = adapter ? [['wasi_snapshot_preview1', readFileSync(adapter)]] : [];
writeFileSync(out, await componentNew(embedded, adapters));
