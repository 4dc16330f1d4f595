/** Takes pictures in by file, drop or paste, and makes large ones small enough to send. */

const SENT_AS_IS = new Set(["image/png", "image/jpeg", "image/webp", "image/gif"]);
const LARGEST_BYTES = 180_000;
const LONGEST_SIDE = 1024;

/** @typedef {{url: string, name: string}} Picture a data: URL, and what to call it */

/**
 * @param {File} file
 * @returns {Promise<Picture>}
 */
export async function readPicture(file) {
  const name = file.name || "pasted picture";
  if (SENT_AS_IS.has(file.type) && file.size <= LARGEST_BYTES) return { url: await dataUrl(file), name };
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${name} is no picture that this browser can read. Use PNG, JPEG, WebP or GIF.`);
  }
  try {
    return { url: await dataUrl(await smaller(bitmap)), name };
  } finally {
    bitmap.close();
  }
}

/** Draw the picture smaller until it fits; a model looks at a few hundred pixels a side. */
async function smaller(bitmap) {
  for (let side = LONGEST_SIDE, quality = 0.9; ; side *= 0.75, quality -= 0.08) {
    const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", Math.max(quality, 0.5)));
    if (blob && (blob.size <= LARGEST_BYTES || side < 256)) return blob;
    if (!blob) throw new Error("This browser cannot make the picture smaller.");
  }
}

/** @param {Blob} blob @returns {Promise<string>} */
function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

/**
 * Call `take` with a file that is dropped anywhere on `place`.
 * @param {HTMLElement} place
 * @param {(over: boolean) => void} onOver
 * @param {(file: File) => void} take
 */
export function onDrop(place, onOver, take) {
  let depth = 0;
  const over = (by) => {
    depth = Math.max(0, depth + by);
    onOver(depth > 0);
  };
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  place.addEventListener("dragenter", (event) => hasFiles(event) && over(1));
  place.addEventListener("dragleave", (event) => hasFiles(event) && over(-1));
  place.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  place.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    onOver(false);
    const file = event.dataTransfer.files[0];
    if (file) take(file);
  });
}

/**
 * Call `take` with a picture that is pasted; pasted text goes where it always goes.
 * @param {() => boolean} wanted
 * @param {(file: File) => void} take
 */
export function onPaste(wanted, take) {
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!file || !wanted()) return;
    event.preventDefault();
    take(file);
  });
}
