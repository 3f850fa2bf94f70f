// Decoding, preprocessing and the model, beside the page, which stays responsive meanwhile.

let loaded = null;

/** Load description, runtime and model, once. */
async function load() {
  const model = await (await answered("model.json")).json();
  const address = (path) => new URL(path, self.location.href).href;
  const ort = await import(address(model.runtime.script));
  ort.env.wasm.wasmPaths = { wasm: address(model.runtime.wasm) };
  ort.env.wasm.numThreads = 1; // more would need a server with headers of its own
  ort.env.logLevel = "error";
  const bytes = new Uint8Array(await (await answered("model.onnx")).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return { ort, session, model };
}

async function answered(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} cannot be loaded (${response.status})`);
  return response;
}

/** Return an image's pixels upright, as its file states them. */
async function decoded(blob) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options)
    .catch(() => { throw new Error("this file is no image that the browser can read"); });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true }); // in memory: a GPU may round
  context.drawImage(bitmap, 0, 0);
  return { bitmap, pixels: context.getImageData(0, 0, bitmap.width, bitmap.height).data };
}

async function detect(blob) {
  const { ort, session, model } = await loaded;
  const { bitmap, pixels } = await decoded(blob);
  const { height, width } = bitmap;
  const began = performance.now();
  const input = prepared(model, pixels, height, width);
  const sizes = BigInt64Array.from({ length: 2 * input.batch }, (_, i) => BigInt(i % 2 ? width : height));
  const made = {
    images: () => new ort.Tensor("float32", input.images, [input.batch, 3, input.height, input.width]),
    padding_mask: () => new ort.Tensor("bool", input.mask, [input.batch, input.height, input.width]),
    target_sizes: () => new ort.Tensor("int64", sizes, [input.batch, 2]),
  };
  const ran = performance.now();
  const feeds = Object.fromEntries(model.inputs.map((name) => [name, made[name]()]));
  const { logits, boxes } = await session.run(feeds, ["logits", "boxes"]);
  const ended = performance.now();
  const detections = detectionsOf(model, logits.data, logits.dims[2], boxes.data, height, width);
  const seconds = { preprocessing: (ran - began) / 1000, model: (ended - ran) / 1000 };
  return { bitmap, detections, seconds, input: [input.height, input.width] };
}

self.onmessage = async ({ data: { id, blob } }) => {
  try {
    loaded ??= load();
    const { model } = await loaded;
    if (!blob) return self.postMessage({ id, model });
    const result = await detect(blob);
    return self.postMessage({ id, result }, [result.bitmap]);
  } catch (error) {
    return self.postMessage({ id, problem: error.message ?? String(error) });
  }
};
