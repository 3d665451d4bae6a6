// The event display: decodes the events that the page carries, draws them with three.js in two panels whose cameras move
// in step, and fills in the side panel. Text from the data reaches the page as text only. Lengths are cm, energies MeV.

const {
  BufferAttribute, BufferGeometry, Color, CustomBlending, LineBasicMaterial, LineSegments, OneFactor, OrbitControls,
  OrthographicCamera, PerspectiveCamera, Points, Scene, ShaderMaterial, Vector3, WebGLRenderer, ZeroFactor,
} = globalThis.THREE;

const page = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const stage = find("stage");
const overlay = find("overlay").getContext("2d");
const tooltip = find("tooltip");
const dark = matchMedia("(prefers-color-scheme: dark)");
const SIDE = page.image_cm;
const ORTHOGRAPHIC_HALF_HEIGHT = 150; // cm at zoom 1
const LEAST_PIXELS = 3; // diameter of a point of size 1 that is far away

// ---- What is shown -------------------------------------------------------------------------------------------------

const MODES = {
  motif: "Motif",
  energy: "Energy",
  particle: "Particle",
  interaction: "Interaction",
  difference: "Difference",
};
const EXPLAIN = {
  particle: "One colour on both sides: the particles that share most voxels. Faint: in no particle.",
  interaction: "One colour on both sides: the interactions that share most voxels. Faint: in none.",
  difference: "Voxels whose motif differs, in the motif's colour; faint where truth and prediction agree.",
};
const VIEWS = {
  // Where the eye is, seen from the middle. Projections are orthographic.
  "3D": { from: [-0.86, 0.4, 0.46], title: "perspective view of the whole detector (R)" },
  Side: { from: [-1, 0, 0], flat: true, title: "z to the right, y up" },
  Top: { from: [-1e-5, 1, 0], flat: true, title: "z to the right, x up" },
  Front: { from: [0, 0, 1], flat: true, title: "x to the right, y up: against the beam" },
  Fit: { fit: true, title: "zoom to the points shown (F)" },
};
const UNLABELLED = -1;

// What is in the light is a choice { kind, number }: both sides' particle or interaction of one colour; null is all.
const state = {
  index: -1,
  mode: null,
  hidden: new Set(),
  size: 1,
  byEnergy: true,
  hover: null,
  pointed: null,
  pinned: null,
  table: true,
};
let current = null; // the decoded event
let theme = null; // colours of the page, as CSS text and as bytes

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const bytesOf = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const mix = (a, b, share) => a.map((value, i) => value + (b[i] - value) * share);
const motifColors = page.motifs.map((motif) => bytesOf(motif.color));
const instanceColors = page.instance_colors.map(bytesOf);
// Nine steps of viridis (van der Walt and Smith 2015). On white it runs backwards: more energy is always more contrast.
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"].map(bytesOf);

function ramp(share) {
  const along = dark.matches ? 0.12 + 0.88 * share : 0.9 * (1 - share);
  const at = clamp(along, 0, 1) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return mix(VIRIDIS[below], VIRIDIS[below + 1], at - below);
}

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  theme = Object.fromEntries(
    ["surface", "text", "muted", "edge", "grid", "faint"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]),
  );
  theme.font = getComputedStyle(document.body).fontFamily;
}

function decode([type, text]) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new globalThis[`${type}Array`](bytes.buffer); // little-endian, as every machine with a browser is
}

function open(index) {
  const event = page.events[index];
  const columns = Object.fromEntries(Object.entries(event.columns).map(([name, column]) => [name, decode(column)]));
  const { energy } = columns;
  const position = Float32Array.from(columns.position, (voxel) => (voxel + 0.5) * page.voxel_cm);
  const usable = energy.filter((value) => Number.isFinite(value) && value > 0).sort();
  const quantile = (share) => usable[Math.floor(share * (usable.length - 1))];
  const found = event.reconstruction;
  const colors = {
    particle: new Map(found?.particle_color ?? []),
    interaction: new Map(found?.interaction_color ?? []),
  };
  const low = usable.length ? quantile(0.02) : 0.1;
  const high = usable.length ? Math.max(quantile(0.98), 1.01 * low) : 1;
  return { ...event, columns, position, n: energy.length, median: usable.length ? quantile(0.5) : 1, low, high, colors };
}

const placeOf = (i) => current.position.subarray(3 * i, 3 * i + 3);
const motifOf = (side, i) => current.columns[`${side}_motif`]?.[i] ?? UNLABELLED;
const hasIds = (kind) => current.panels.some((side) => current.columns[`${side}_${kind}`]?.some((id) => id >= 0));

function available(mode) {
  if (mode === "motif") return current.panels[0] !== "charge";
  if (mode === "difference") return current.panels.length === 2;
  return mode === "energy" || hasIds(mode);
}

const hasLists = () => Object.keys(current.lists).length > 0;
const mode = () => [state.mode ?? (hasLists() ? "particle" : "motif"), "motif", "energy"].find(available);

/** The number that an instance is drawn with; the two sides' that share most voxels have one. */
const numberOf = (side, kind, id) => (side === "prediction" ? (current.colors[kind].get(id) ?? id) : id);
const instanceColor = (number) => instanceColors[number % instanceColors.length];
const chosen = () => state.pointed ?? state.pinned;
const same = (a, b) => a?.kind === b?.kind && a?.number === b?.number;

/** A function of a point: its colour on one side, as bytes, or null where it only stands in the background. */
function painter(side) {
  const { columns, low, high } = current;
  const kind = mode(); // once: it looks through whole columns
  switch (kind) {
    case "energy":
      return (i) => {
        const energy = columns.energy[i];
        return energy > 0 ? ramp(clamp(Math.log(energy / low) / Math.log(high / low), 0, 1)) : null;
      };
    case "difference": {
      const other = side === "truth" ? "prediction" : "truth";
      return (i) => {
        const [mine, theirs] = [motifOf(side, i), motifOf(other, i)];
        return mine < 0 || theirs < 0 || mine === theirs ? null : motifColors[mine];
      };
    }
    case "motif":
      return (i) => motifColors[motifOf(side, i)] ?? null;
    default: {
      const ids = columns[`${side}_${kind}`] ?? new Int8Array(current.n).fill(UNLABELLED);
      return (i) => (ids[i] < 0 ? null : instanceColor(numberOf(side, kind, ids[i])));
    }
  }
}

/** The same, with all that is not chosen in the background. */
function spotlight(side) {
  const [colorOf, choice] = [painter(side), chosen()];
  if (!choice) return colorOf;
  const ids = current.columns[`${side}_${choice.kind}`];
  const plain = bytesOf(theme.muted);
  return (i) => (ids?.[i] >= 0 && numberOf(side, choice.kind, ids[i]) === choice.number ? (colorOf(i) ?? plain) : null);
}

// ---- Space ---------------------------------------------------------------------------------------------------------

const renderer = createRenderer();
const scene = new Scene();
const material = new ShaderMaterial({
  // Alpha decides how much of a pixel a point covers, and must not reach the canvas, which would let the page through.
  alphaToCoverage: true,
  blending: CustomBlending,
  blendSrc: OneFactor,
  blendDst: ZeroFactor,
  blendSrcAlpha: ZeroFactor,
  blendDstAlpha: OneFactor,
  uniforms: {
    background: { value: new Color() },
    pixels: { value: 1 }, // height of the panel, device pixels
    least: { value: 2 }, // diameter of a point of size 1 seen from afar, device pixels
    voxel: { value: page.voxel_cm },
    focus: { value: 1 }, // distance of what the camera turns about
  },
  vertexShader: `
    attribute vec4 tint;
    attribute float size;
    uniform float pixels, least, voxel;
    varying vec4 vTint;
    varying float vDiameter, vDepth;
    void main() {
      vec4 seen = modelViewMatrix * vec4(position, 1.0);
      gl_Position = projectionMatrix * seen;
      // Points in the background keep the rear half of the depth range: they never hide the others.
      float depth = gl_Position.z / gl_Position.w;
      gl_Position.z = (tint.a > 0.5 ? 0.5 * depth - 0.5 : 0.5 * depth + 0.5) * gl_Position.w;
      float voxelPixels = 0.5 * voxel * projectionMatrix[1][1] * pixels / gl_Position.w;
      vDiameter = size * max(least, 1.1 * voxelPixels);
      gl_PointSize = vDiameter + 1.0;
      vTint = tint;
      vDepth = -seen.z;
    }`,
  fragmentShader: `
    uniform vec3 background;
    uniform float focus;
    varying vec4 vTint;
    varying float vDiameter, vDepth;
    void main() {
      vec2 at = (2.0 * gl_PointCoord - 1.0) * (vDiameter + 1.0) / vDiameter;
      float radius = length(at);
      float cover = clamp((1.0 - radius) * 0.5 * vDiameter + 0.5, 0.0, 1.0);
      if (cover <= 0.0) discard;
      vec3 normal = vec3(at.x, -at.y, sqrt(max(1.0 - radius * radius, 0.0)));
      float light = 0.62 + 0.46 * max(dot(normal, vec3(-0.37, 0.56, 0.74)), 0.0);
      vec3 color = vTint.rgb * mix(1.0, light, smoothstep(3.0, 9.0, vDiameter));
      float far = clamp((vDepth - focus) / 260.0, 0.0, 1.0); // what is far fades: depth without shadows
      gl_FragColor = vec4(mix(color, background, 0.45 * far), cover);
    }`,
});
const frame = new LineSegments(boxEdges(), new LineBasicMaterial({ depthTest: false, depthWrite: false }));
const grid = new LineSegments(floorGrid(), new LineBasicMaterial({ depthTest: false, depthWrite: false }));
grid.renderOrder = -2;
frame.renderOrder = -1;
scene.add(grid, frame);

const panels = [...document.querySelectorAll(".panel")].map(createPanel);
const shown = () => panels.filter((panel) => panel.side !== null);
let flat = false; // orthographic
let following = false; // cameras move because we say so, not because of a drag
let aimed = null; // the view that was asked for, while nobody has moved away from it
let dirty = false;
let ready = false;

function createRenderer() {
  try {
    return new WebGLRenderer({ canvas: find("space"), antialias: true });
  } catch (error) {
    find("notice").hidden = false;
    find("notice").textContent = "This browser cannot draw in 3D (no WebGL 2). Another browser, or the picture that larpanda view --png makes, can.";
    throw error;
  }
}

function lines(ends) {
  return new BufferGeometry().setAttribute("position", new BufferAttribute(new Float32Array(ends.flat()), 3));
}

function corners() {
  return [0, 1, 2, 3, 4, 5, 6, 7].map((k) => [k & 4 ? SIDE : 0, k & 2 ? SIDE : 0, k & 1 ? SIDE : 0]);
}

function boxEdges() {
  const all = corners();
  const pairs = all.flatMap((a, i) => all.slice(i + 1).map((b) => [a, b]));
  return lines(pairs.filter(([a, b]) => a.filter((x, k) => x !== b[k]).length === 1).flat());
}

function floorGrid() {
  const ends = [];
  for (let at = 50; at < SIDE; at += 50) ends.push([at, 0, 0], [at, 0, SIDE], [0, 0, at], [SIDE, 0, at]);
  return lines(ends);
}

function createPanel(div, number) {
  const perspective = new PerspectiveCamera(30, 1, 1, 6000);
  const orthographic = new OrthographicCamera(-1, 1, 1, -1, 1, 6000);
  const controls = new OrbitControls(perspective, div);
  controls.enableDamping = false; // a drag that has ended has ended: what is seen is what a picture shows
  controls.zoomToCursor = true;
  controls.minDistance = 3;
  controls.maxDistance = 3000;
  controls.minZoom = 0.2;
  controls.maxZoom = 100;
  const panel = { div, number, perspective, orthographic, controls, side: null, points: null, rows: [], drawn: 0 };
  controls.addEventListener("change", () => {
    if (following) return;
    aimed = null;
    follow(panel);
  });
  div.addEventListener("pointermove", (event) => hover(panel, event));
  div.addEventListener("pointerleave", () => hover(null));
  div.addEventListener("pointerdown", (event) => {
    hover(null);
    panel.pressed = [event.clientX, event.clientY];
  });
  div.addEventListener("click", (event) => {
    const moved = Math.hypot(event.clientX - panel.pressed[0], event.clientY - panel.pressed[1]);
    if (moved < 4 && hasLists()) pinPoint(panel, event); // else it was a drag
  });
  div.addEventListener("wheel", () => focusOn(panel, state.hover), { capture: true, passive: true });
  return panel;
}

/** Every camera goes where the one that was moved is. */
function follow(leader) {
  const from = leader.controls.object;
  for (const { controls } of panels) {
    if (controls === leader.controls) continue;
    controls.object.position.copy(from.position);
    controls.object.quaternion.copy(from.quaternion);
    controls.object.zoom = from.zoom;
    controls.target.copy(leader.controls.target);
  }
  hover(null);
  invalidate();
}

/** Zooming homes in on the point under the pointer: from now on all cameras turn about a place as far away as it is. */
function focusOn({ controls: { object } }, row) {
  if (row === null) return;
  const [ahead, toPoint] = [object.getWorldDirection(new Vector3()), new Vector3(...placeOf(row)).sub(object.position)];
  for (const { controls } of panels) controls.target.copy(object.position).addScaledVector(ahead, toPoint.dot(ahead));
}

function rectangle(panel) {
  const { offsetLeft: x, offsetTop: y, clientWidth: width, clientHeight: height } = panel.div;
  return { x: x + panel.div.clientLeft, y: y + panel.div.clientTop, width: Math.max(width, 1), height: Math.max(height, 1) };
}

/** Aim all cameras so that the given points [[x, y, z], ...] just fill the panels. */
function look(from, orthographic, around) {
  const low = [0, 1, 2].map((k) => Math.min(...around.map((point) => point[k])));
  const high = [0, 1, 2].map((k) => Math.max(...around.map((point) => point[k])));
  const target = new Vector3(...low.map((value, k) => 0.5 * (value + high[k])));
  const back = new Vector3(...from).normalize();
  const right = new Vector3(0, 1, 0).cross(back).normalize();
  const up = back.clone().cross(right);
  const { width, height } = rectangle(shown()[0] ?? panels[0]);
  const [tanY, tanX] = [1, width / height].map((aspect) => aspect * Math.tan((15 * Math.PI) / 180));
  const room = { x: Math.max(1 - 96 / width, 0.5), y: Math.max(1 - 128 / height, 0.5) }; // for labels
  let distance = 10;
  let half = 3;
  for (const point of around) {
    const at = new Vector3(...point).sub(target);
    const [x, y, z] = [Math.abs(at.dot(right)) / room.x, Math.abs(at.dot(up)) / room.y, at.dot(back)];
    distance = Math.max(distance, x / tanX + z, y / tanY + z);
    half = Math.max(half, (x * height) / width, y);
  }
  flat = orthographic;
  const leader = panels[0];
  following = true;
  for (const { controls, ...panel } of panels) controls.object = flat ? panel.orthographic : panel.perspective;
  leader.controls.target.copy(target);
  leader.controls.object.position.copy(target).addScaledVector(back, flat ? 900 : distance);
  leader.controls.object.zoom = flat ? ORTHOGRAPHIC_HALF_HEIGHT / half : 1;
  leader.controls.update();
  following = false;
  follow(leader);
}

function view(name) {
  const { from, flat: orthographic, fit } = VIEWS[name];
  aimed = fit ? null : name;
  if (!fit) return look(from, Boolean(orthographic), corners());
  const rows = shown().flatMap((panel) => panel.rows);
  if (!rows.length) return view("3D");
  // The box of the points without the outermost percent on each side: a stray deposit does not decide.
  const bounds = [0, 1, 2].map((k) => {
    const sorted = Float32Array.from(rows, (i) => current.position[3 * i + k]).sort();
    return [0.01, 0.99].map((share) => sorted[Math.round(share * (sorted.length - 1))]);
  });
  const box = corners().map((corner) => corner.map((value, k) => bounds[k][value ? 1 : 0]));
  const { object, target } = panels[0].controls;
  return look(object.position.clone().sub(target).toArray(), flat, box);
}

/** The points of one panel anew: those whose motif is not switched off. */
function fill(panel) {
  panel.points?.geometry.dispose();
  panel.points?.removeFromParent();
  panel.points = null;
  panel.rows = [];
  if (panel.side === null) return;
  for (let i = 0; i < current.n; i++) if (!state.hidden.has(motifOf(panel.side, i))) panel.rows.push(i);
  const position = new Float32Array(3 * panel.rows.length);
  const tint = new Uint8Array(4 * panel.rows.length);
  panel.size = new Float32Array(panel.rows.length);
  const faint = bytesOf(theme.faint);
  const colorOf = spotlight(panel.side);
  panel.rows.forEach((i, at) => {
    const color = colorOf(i);
    const ratio = current.columns.energy[i] / current.median;
    const byEnergy = state.byEnergy && ratio > 0 ? clamp(Math.cbrt(ratio), 0.5, 2.5) : 1;
    position.set(placeOf(i), 3 * at);
    tint.set(color ?? faint, 4 * at);
    tint[4 * at + 3] = color ? 255 : 0;
    panel.size[at] = state.size * byEnergy * (color ? 1 : 0.75);
  });
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(position, 3));
  geometry.setAttribute("tint", new BufferAttribute(tint, 4, true));
  geometry.setAttribute("size", new BufferAttribute(panel.size, 1));
  panel.points = new Points(geometry, material);
  panel.points.frustumCulled = false;
  scene.add(panel.points);
}

function refill() {
  panels.forEach(fill);
  hover(null);
  invalidate();
}

function invalidate() {
  if (!dirty) requestAnimationFrame(flush);
  dirty = true;
}

function flush() {
  if (dirty) render();
}

function render() {
  dirty = false;
  const { clientWidth: width, clientHeight: height } = stage;
  const ratio = Math.min(devicePixelRatio, 2);
  renderer.setPixelRatio(ratio);
  renderer.setSize(width, height, false);
  renderer.setClearColor(theme.surface);
  renderer.setScissorTest(false);
  renderer.clear();
  renderer.setScissorTest(true);
  material.uniforms.background.value.setRGB(...bytesOf(theme.surface).map((byte) => byte / 255));
  material.uniforms.least.value = LEAST_PIXELS * ratio;
  frame.material.color.set(theme.edge);
  grid.material.color.set(theme.grid);
  for (const panel of panels) panel.drawn = 0;
  for (const panel of shown()) {
    const { x, y, width: w, height: h } = rectangle(panel);
    const camera = panel.controls.object;
    if (flat) {
      camera.top = ORTHOGRAPHIC_HALF_HEIGHT;
      camera.right = (camera.top * w) / h;
      camera.left = -camera.right;
      camera.bottom = -camera.top;
    } else {
      camera.aspect = w / h;
    }
    camera.updateProjectionMatrix();
    camera.updateMatrixWorld();
    renderer.setViewport(x, height - y - h, w, h);
    renderer.setScissor(x, height - y - h, w, h);
    material.uniforms.pixels.value = h * ratio;
    material.uniforms.focus.value = camera.position.distanceTo(panel.controls.target);
    for (const other of panels) if (other.points) other.points.visible = other === panel;
    renderer.render(scene, camera);
    panel.drawn = renderer.info.render.points; // what the renderer says, not what it was asked
  }
  find("overlay").width = width * ratio;
  find("overlay").height = height * ratio;
  paint();
  ready = true;
}

// ---- Words, axes and scale on top ----------------------------------------------------------------------------------

/** A function of x, y, z: where on the stage they are, in CSS pixels, and how far away; null if behind the eye. */
function projector(panel) {
  const { x: left, y: top, width, height } = rectangle(panel);
  const camera = panel.controls.object;
  const eye = camera.matrixWorldInverse.elements;
  const screen = camera.projectionMatrix.clone().multiply(camera.matrixWorldInverse).elements;
  const row = (matrix, k, x, y, z) => matrix[k] * x + matrix[k + 4] * y + matrix[k + 8] * z + matrix[k + 12];
  return (x, y, z) => {
    const depth = -row(eye, 2, x, y, z);
    if (depth < camera.near) return null;
    const w = row(screen, 3, x, y, z);
    const [across, up] = [row(screen, 0, x, y, z) / w, row(screen, 1, x, y, z) / w];
    return { x: left + (0.5 + 0.5 * across) * width, y: top + (0.5 - 0.5 * up) * height, depth };
  };
}

const pixelsPerCm = (panel, depth) =>
  (0.5 * rectangle(panel).height * panel.controls.object.projectionMatrix.elements[5]) / (flat ? 1 : depth);

function write(text, x, y, { color = theme.muted, size = 12, weight = 400, align = "center" } = {}) {
  overlay.font = `${weight} ${size}px ${theme.font}`;
  overlay.fillStyle = color;
  overlay.textAlign = align;
  overlay.textBaseline = "middle";
  overlay.fillText(text, x, y);
}

function stroke(ax, ay, bx, by, color, width = 1) {
  overlay.strokeStyle = color;
  overlay.lineWidth = width;
  overlay.beginPath();
  overlay.moveTo(ax, ay);
  overlay.lineTo(bx, by);
  overlay.stroke();
}

function paint() {
  const ratio = Math.min(devicePixelRatio, 2);
  overlay.setTransform(ratio, 0, 0, ratio, 0, 0);
  overlay.clearRect(0, 0, stage.clientWidth, stage.clientHeight);
  for (const panel of shown()) {
    const { x, y, width, height } = rectangle(panel);
    overlay.save();
    overlay.beginPath();
    overlay.rect(x, y, width, height);
    overlay.clip();
    for (const axis of [0, 1, 2]) paintAxis(panel, axis);
    paintScale(panel);
    const title = { truth: "Truth", prediction: "Prediction", charge: "Charge" }[panel.side];
    write(title, x + 16, y + 20, { color: theme.text, size: 15, weight: 650, align: "left" });
    if (panel.note) write(panel.note, x + 16, y + 40, { align: "left" });
    if (!current.n) write("no voxel to draw", x + width / 2, y + height / 2, { size: 14 });
    if (state.hover !== null && panel.rows.includes(state.hover)) paintRing(panel, state.hover);
    overlay.restore();
  }
}

/** Ticks along one of the four edges in this direction: the leftmost if it stands, else the lowest on the screen. */
function paintAxis(panel, axis) {
  const project = projector(panel);
  const others = [0, 1, 2].filter((k) => k !== axis);
  const edges = [[0, 0], [0, SIDE], [SIDE, 0], [SIDE, SIDE]].map(([a, b]) => {
    const start = [0, 0, 0];
    [start[others[0]], start[others[1]]] = [a, b];
    return { start, a: project(...start), b: project(...start.map((value, k) => (k === axis ? SIDE : value))) };
  });
  const middle = project(SIDE / 2, SIDE / 2, SIDE / 2);
  if (!middle || edges.some(({ a, b }) => !a || !b)) return;
  const { a: first, b: last } = edges[0];
  const stands = Math.abs(last.y - first.y) > 1.2 * Math.abs(last.x - first.x);
  const rank = ({ a, b }) => (stands ? a.x + b.x : -(a.y + b.y));
  const { start, a, b } = edges.reduce((best, edge) => (rank(edge) < rank(best) - 0.5 ? edge : best));
  const length = Math.hypot(b.x - a.x, b.y - a.y);
  if (length < 60) return;
  let out = { x: (b.y - a.y) / length, y: (a.x - b.x) / length };
  const center = { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
  if ((center.x - middle.x) * out.x + (center.y - middle.y) * out.y < 0) out = { x: -out.x, y: -out.y };
  const step = length > 900 ? 25 : length > 210 ? 50 : 100;
  for (let at = 0; at < SIDE; at += step) {
    const tick = project(...start.map((value, k) => (k === axis ? at : value)));
    stroke(tick.x, tick.y, tick.x + 5 * out.x, tick.y + 5 * out.y, theme.edge);
    write(String(at), tick.x + 17 * out.x, tick.y + 14 * out.y, { size: 11 });
  }
  const name = axis < 2 ? `${"xy"[axis]} [cm]` : null;
  let turn = Math.atan2(b.y - a.y, b.x - a.x);
  // Words run to the right, or upwards where the edge stands.
  const backwards = stands ? b.y > a.y : Math.abs(turn) > Math.PI / 2;
  if (backwards) turn += Math.PI;
  overlay.save();
  const away = stands ? 42 : 35;
  overlay.translate(center.x + away * out.x, center.y + away * out.y);
  overlay.rotate(turn);
  write(name ?? (backwards ? "← beam, z [cm]" : "z [cm], beam →"), 0, 0, { color: theme.text });
  overlay.restore();
}

function paintScale(panel) {
  const { x, y, width, height } = rectangle(panel);
  const { object, target } = panel.controls;
  const perCm = pixelsPerCm(panel, object.position.distanceTo(target));
  const longest = Math.min(130, width / 4) / perCm;
  const power = 10 ** Math.floor(Math.log10(longest));
  const length = [5, 2, 1].find((digit) => digit * power <= longest) * power;
  const [left, bottom, pixels] = [x + 16.5, Math.round(y + height) - 16.5, length * perCm];
  stroke(left, bottom, left + pixels, bottom, theme.text, 2);
  for (const end of [left, left + pixels]) stroke(end, bottom - 4, end, bottom + 4, theme.text, 2);
  write(`${Number(length.toPrecision(1))} cm`, left + pixels / 2, bottom - 13, { color: theme.text });
}

function paintRing(panel, i) {
  const at = projector(panel)(...placeOf(i));
  if (!at) return;
  overlay.strokeStyle = theme.text;
  overlay.lineWidth = 1.8;
  overlay.beginPath();
  overlay.arc(at.x, at.y, Math.max(7, 0.5 * page.voxel_cm * pixelsPerCm(panel, at.depth) + 5), 0, 2 * Math.PI);
  overlay.stroke();
}

// ---- What is under the pointer -------------------------------------------------------------------------------------

/** The row of the point nearest to the eye among those under the pointer, or the nearest within some pixels of it. */
function pick(panel, x, y) {
  let [best, least] = [null, Infinity];
  const project = projector(panel);
  const unit = 1.1 * page.voxel_cm * pixelsPerCm(panel, 1);
  panel.rows.forEach((i, at) => {
    const seen = project(current.position[3 * i], current.position[3 * i + 1], current.position[3 * i + 2]);
    if (!seen) return;
    const away = Math.hypot(seen.x - x, seen.y - y);
    const diameter = panel.size[at] * Math.max(LEAST_PIXELS, flat ? unit : unit / seen.depth);
    if (away > Math.max(diameter / 2, 6)) return;
    const score = away <= diameter / 2 + 1 ? seen.depth : 1e6 + away;
    if (score < least) [best, least] = [i, score];
  });
  return best;
}

function onStage(event) {
  const { left, top } = stage.getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
}

function hover(panel, event) {
  const [x, y] = event ? onStage(event) : [0, 0];
  const row = panel && !event.buttons ? pick(panel, x, y) : null;
  tooltip.hidden = row === null;
  if (row !== null) {
    tooltip.replaceChildren(facts(pointFacts(row)));
    const { offsetWidth: width, offsetHeight: height } = tooltip;
    tooltip.style.left = `${x + width + 24 > stage.clientWidth ? x - width - 14 : x + 14}px`;
    tooltip.style.top = `${clamp(y + 14, 0, Math.max(stage.clientHeight - height - 4, 0))}px`;
  }
  if (row === state.hover) return;
  state.hover = row;
  if (!dirty && ready) paint();
}

function pointFacts(i) {
  const { columns } = current;
  const place = [0, 1, 2].map((k) => current.position[3 * i + k].toFixed(2)).join(", ");
  const rows = [["row", String(columns.row[i])], ["x, y, z", `${place} cm`], ["energy", `${columns.energy[i].toPrecision(3)} MeV`]];
  for (const side of current.panels.filter((name) => name !== "charge")) {
    const motif = motifOf(side, i);
    const words = [motif < 0 ? (side === "prediction" ? "none (not seen by the model)" : "none") : page.motifs[motif].name];
    if (side === "prediction" && motif >= 0) words[0] += ` ${columns.prediction_percent[i]} %`;
    const [species, particle, interaction] = ["species", "particle", "interaction"].map((name) => columns[`${side}_${name}`][i]);
    if (particle >= 0) words.push(`${species < 0 ? "particle" : page.species[species]} ${particle}`);
    if (interaction >= 0) words.push(`interaction ${interaction}`);
    words.forEach((word, at) => rows.push([at ? "" : side, word]));
  }
  return rows;
}

// ---- The side panel ------------------------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function facts(rows) {
  const list = document.createDocumentFragment();
  for (const [name, value] of rows) list.append(make("dt", {}, name), make("dd", {}, value));
  return make("dl", {}, list);
}

const whole = (n) => n.toLocaleString("en-US");
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function energyText(mev) {
  if (mev === null) return "not a number";
  return mev >= 1000 ? `${(mev / 1000).toFixed(3)} GeV` : `${mev.toFixed(1)} MeV`;
}

function showFacts() {
  const { truth, reconstruction: found, panels: sides } = current;
  const status = found ? found.status : "not reconstructed";
  const rows = [
    ["status", make("span", { className: status === "ok" ? "badge" : "badge warn" }, status)],
    ["voxels", whole(current.n_voxels)],
    ["energy", energyText(current.energy_mev)],
  ];
  if (found) rows.push(["below threshold", whole(found.n_below_threshold)]);
  if (found?.n_merged) rows.push(["sharing a voxel", whole(found.n_merged)]);
  for (const kind of ["particles", "interactions"]) {
    const counts = [];
    if (sides.includes("truth")) counts.push(`${truth[`n_${kind}`]} true`);
    if (found && found[`n_${kind}`] !== null) counts.push(`${found[`n_${kind}`]} found`);
    if (counts.length) rows.push([kind, counts.join(", ")]);
  }
  if (found?.agreement) {
    rows.push(["motif accuracy", percent(found.agreement.accuracy)], ["macro F1", found.agreement.macro_f1.toFixed(3)]);
  }
  find("facts").replaceChildren(...facts(rows).children);
  const unseen = current.n_voxels - current.n_drawn;
  const notes = [];
  if (found && found.status !== "ok" && found.reason) notes.push(`${found.status}: ${found.reason}`);
  if (unseen) notes.push(`${whole(unseen)} of ${whole(current.n_voxels)} voxels have no place in the detector and are not drawn.`);
  find("notice").textContent = notes.join(" ");
  find("notice").hidden = !notes.length;
}

function showMotifs() {
  const sides = current.panels;
  const counts = sides.map((side) => {
    const count = new Map();
    for (let i = 0; i < current.n; i++) count.set(motifOf(side, i), (count.get(motifOf(side, i)) ?? 0) + 1);
    return count;
  });
  const f1 = current.reconstruction?.agreement?.f1;
  const heads = ["", ...sides, ...(f1 ? ["F1"] : [])];
  const table = [make("tr", {}, ...heads.map((text) => make("th", {}, text === "prediction" && f1 ? "predicted" : text)))];
  const classes = page.motifs.map((motif, label) => ({ ...motif, label }));
  if (counts.some((count) => count.has(UNLABELLED))) classes.push({ name: "no motif", color: theme.faint, label: UNLABELLED });
  for (const { name, color, label } of classes) {
    const box = make("input", { type: "checkbox", checked: !state.hidden.has(label) });
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(label);
      else state.hidden.add(label);
      refill();
    });
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = color;
    const cells = counts.map((count) => whole(count.get(label) ?? 0));
    if (f1) cells.push(label >= 0 && f1[label] !== null ? f1[label].toFixed(3) : "–");
    table.push(make("tr", {}, make("td", {}, make("label", {}, box, swatch, name)), ...cells.map((text) => make("td", {}, text))));
  }
  find("motifs").replaceChildren(make("tbody", {}, ...table));
}

function showMode() {
  for (const button of find("modes").children) {
    button.disabled = !available(button.value);
    button.setAttribute("aria-pressed", String(button.value === mode()));
  }
  find("lists").dataset.mode = mode();
  find("explain").textContent = EXPLAIN[mode()] ?? "";
  find("ramp").hidden = mode() !== "energy";
  const [bar, ends] = find("ramp").children;
  const stops = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((at) => `rgb(${ramp(at / 8).map(Math.round).join(" ")})`);
  bar.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  [ends.firstChild.textContent, ends.lastChild.textContent] = [current.low, current.high].map((mev) => mev.toPrecision(2));
}

// ---- Lists of particles --------------------------------------------------------------------------------------------

const decimals = (n) => (value) => value.toFixed(n).replace(/^-(?=[0.]*$)/, "").replace("-", "\u2212");
const component = (value) => make("span", { className: "signed" }, decimals(2)(value));
// Key of a particle, head, how it is written, and what it is. A column that a side knows nothing of is left out.
const COLUMNS = [
  ["score", "score", decimals(2), "how sure the model is that it is one particle of this species, 0 to 1"],
  ["energy_mev", "KE [MeV]", decimals(1), "kinetic energy; found: by range if it came to rest, else from its charge"],
  ["length_cm", "length [cm]", decimals(1), "along a track; of a shower from its start to its farthest voxel"],
  ["direction", "direction x, y, z", (way) => way.map(component), "where it goes at its start, of length 1"],
  ["contained", "contained", (is) => (is ? "yes" : "no"), "found: no nearer to a wall than 5 cm; true: in the image"],
  ["n_voxels", "voxels", whole, "found: above threshold; true: all"],
];
const SCORES = {
  ari: ["ARI", "adjusted Rand index, voxels above threshold that belong to a true one"],
  purity: ["purity", "largest share of one true in each one found; mean over those found"],
  efficiency: ["efficiency", "largest share of each true one in one found; mean over the true"],
};
const AT_VERTEX = "at the vertex of the interaction, photons from there included; then, indented, what began later";

/** The words of an interaction: what it is, where it began, how much energy it has. */
function headline(one) {
  const parts = [one.topology && make("b", {}, one.topology)];
  if (one.vertex_cm) parts.push(`vertex ${one.vertex_cm.map(decimals(1)).join(", ")} cm`);
  if (one.energy_mev !== null) parts.push(`${decimals(1)(one.energy_mev)} MeV`);
  else if (one.deposited_mev !== null) parts.push(`${decimals(1)(one.deposited_mev)} MeV deposited`);
  return parts.filter(Boolean).flatMap((part) => [" \u00a0", part]);
}

/** A row that puts what it stands for into the light. */
function choiceRow(side, kind, one, name, className, ...rest) {
  const number = numberOf(side, kind, one.id);
  const swatch = make("span", { className: "swatch" });
  swatch.style.setProperty("--color", `rgb(${instanceColor(number).join(" ")})`);
  const [first, ...cells] = [make("td", {}, swatch, " ", make("button", { type: "button" }, name)), ...rest];
  return make("tr", { className: `${kind} ${className}`, choice: { kind, number } }, first, ...cells);
}

function listOf(side) {
  const groups = current.lists[side];
  const all = groups.flatMap(({ particles }) => particles);
  const counted = side === "truth" || current.reconstruction.n_particles !== null; // else the model looks for none
  const columns = COLUMNS.filter(([key]) => all.some((one) => one[key] !== null));
  const rows = [];
  const order = ({ interaction: one }) => (one ? numberOf(side, "interaction", one.id) : Infinity);
  for (const { interaction, particles } of [...groups].sort((a, b) => order(a) - order(b))) {
    if (interaction) {
      const row = choiceRow(side, "interaction", interaction, `interaction ${interaction.id}`, "");
      row.firstChild.colSpan = columns.length + 1;
      row.firstChild.append(...headline(interaction), counted && !particles.length ? " \u00a0no particles" : "");
      if (interaction.score !== null) row.title = `score ${decimals(2)(interaction.score)}`;
      rows.push(row);
    } else if (groups.length > 1) {
      const cell = make("td", { colSpan: columns.length + 1 }, "in no interaction");
      rows.push(make("tr", { className: "interaction" }, cell));
    }
    for (const one of particles) {
      const contents = columns.map(([key, , write]) => (one[key] === null ? "–" : write(one[key])));
      const cells = contents.map((content) => make("td", {}, ...[content].flat()));
      const name = `${page.species[one.species] ?? "particle"} ${one.id}`;
      rows.push(choiceRow(side, "particle", one, name, one.at_vertex === false ? "later" : "", ...cells));
    }
  }
  const words = `${counted ? `${all.length} ` : ""}${side === "truth" ? "true" : "found"}`;
  const titles = [["", words, null, AT_VERTEX], ...columns];
  const heads = make("tr", {}, ...titles.map(([, text, , title]) => make("th", { title, scope: "col" }, text)));
  const table = make("table", {}, make("thead", {}, heads), make("tbody", {}, ...rows));
  return make("div", { className: "list" }, table);
}

function showLists() {
  const sides = current.panels.filter((side) => current.lists[side]);
  find("lists").replaceChildren(...sides.map(listOf));
  find("lists").hidden = !sides.length || !state.table;
  find("table").hidden = find("list-keys").hidden = !sides.length;
  find("table").setAttribute("aria-pressed", String(state.table));
  markRows();
}

function showScores() {
  const rows = Object.entries(current.scores).map(([name, values]) => {
    const texts = Object.keys(SCORES).map((key) => (values[key] === null ? "–" : decimals(3)(values[key])));
    const cells = texts.map((text) => make("td", {}, text));
    return make("tr", {}, make("td", {}, name), ...cells);
  });
  const heads = Object.values(SCORES).map(([text, title]) => make("th", { title, scope: "col" }, text));
  if (rows.length) rows.unshift(make("tr", {}, make("th"), ...heads));
  find("scores").replaceChildren(make("tbody", {}, ...rows));
}

const listRows = () => [...find("lists").querySelectorAll("tr")].filter((row) => row.choice);

function markRows() {
  for (const row of listRows()) {
    row.classList.toggle("chosen", same(row.choice, chosen()));
    row.classList.toggle("pinned", same(row.choice, state.pinned));
    row.querySelector("button").setAttribute("aria-pressed", String(same(row.choice, state.pinned)));
  }
}

function light(change) {
  const before = chosen();
  Object.assign(state, change);
  markRows();
  if (!same(before, chosen())) refill();
}

/** Keep something in the light, or no longer; its rows come into sight. */
function pin(choice) {
  light({ pinned: same(choice, state.pinned) ? null : choice });
  for (const row of listRows()) if (same(row.choice, state.pinned)) row.scrollIntoView({ block: "nearest" });
}

function pinPoint(panel, event) {
  const i = pick(panel, ...onStage(event));
  if (i === null) return;
  const kinds = mode() === "interaction" ? ["interaction", "particle"] : ["particle", "interaction"];
  const idOf = (kind) => current.columns[`${panel.side}_${kind}`]?.[i] ?? UNLABELLED;
  const kind = kinds.find((name) => idOf(name) >= 0);
  if (kind) pin({ kind, number: numberOf(panel.side, kind, idOf(kind)) });
}

function listenToLists() {
  const lists = find("lists");
  const choiceAt = (event) => event.target.closest("tr")?.choice ?? null;
  lists.addEventListener("pointerover", (event) => light({ pointed: choiceAt(event) }));
  lists.addEventListener("pointerleave", () => light({ pointed: null }));
  lists.addEventListener("focusin", (event) => {
    if (event.target.matches(":focus-visible")) light({ pointed: choiceAt(event) }); // it came by keyboard
  });
  lists.addEventListener("focusout", () => light({ pointed: null }));
  lists.addEventListener("click", (event) => choiceAt(event) && pin(choiceAt(event)));
  find("table").addEventListener("click", toggleTable);
}

function toggleTable() {
  light({ pointed: null });
  state.table = !state.table;
  showLists();
}

function setMode(name) {
  state.mode = name;
  showMode();
  refill();
}

function setEvent(index) {
  if (!(index >= 0 && index < page.events.length) || index === state.index) return;
  Object.assign(state, { index, pointed: null, pinned: null });
  current = open(index);
  const before = shown().length;
  panels.forEach((panel, at) => {
    panel.side = current.panels.find((side) => (side === "prediction") === (at === 1)) ?? null;
    panel.div.hidden = panel.side === null;
    panel.div.ariaLabel = panel.side ?? "";
    panel.note = "";
  });
  if (!current.panels.includes("truth") && current.n) shown()[0].note = "this event comes without truth";
  else if (!current.reconstruction) shown()[0].note = "not reconstructed";
  find("events").selectedIndex = index;
  find("previous").disabled = index === 0;
  find("next").disabled = index === page.events.length - 1;
  showFacts();
  showScores();
  showMotifs();
  showLists();
  showMode();
  refill();
  if (aimed && shown().length !== before) view(aimed);
  if (location.hash !== `#event=${index}`) location.replace(`#event=${index}`);
}

function followLink() {
  const match = /^#event=(\d+)$/.exec(location.hash);
  setEvent(match ? Math.min(Number(match[1]), page.events.length - 1) : Math.max(state.index, 0));
}

/** What is on the screen, with title and colours below it, as a file. */
function save() {
  render(); // the drawing buffer is only there until the browser has shown it
  const [space, words] = [find("space"), find("overlay")];
  const ratio = space.width / stage.clientWidth;
  const strip = 40;
  const canvas = make("canvas", { width: space.width, height: space.height + strip * ratio });
  const context = canvas.getContext("2d");
  context.fillStyle = theme.surface;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(space, 0, 0);
  context.drawImage(words, 0, 0);
  context.scale(ratio, ratio);
  context.fillStyle = theme.grid;
  if (shown().length === 2) context.fillRect(rectangle(panels[1]).x - 1, 0, 1, stage.clientHeight);
  const line = stage.clientHeight + strip / 2;
  context.textBaseline = "middle";
  context.font = `600 13px ${theme.font}`;
  context.fillStyle = theme.text;
  context.fillText(current.name, 16, line);
  let x = stage.clientWidth - 16;
  context.font = `400 13px ${theme.font}`;
  context.textAlign = "right";
  if (mode() === "motif" || mode() === "difference") {
    for (const { name, color } of [...page.motifs].reverse()) {
      context.fillStyle = theme.text;
      context.fillText(name, x, line);
      x -= context.measureText(name).width + 12;
      context.fillStyle = color;
      context.beginPath();
      context.arc(x, line, 5, 0, 2 * Math.PI);
      context.fill();
      x -= 20;
    }
  } else {
    context.fillText(`colour: ${MODES[mode()].toLowerCase()}`, x, line);
  }
  canvas.toBlob((blob) => {
    const link = make("a", { href: URL.createObjectURL(blob), download: `${current.name.replace(/\W+/g, "_").replace(/_$/, "")}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

// ---- Start ---------------------------------------------------------------------------------------------------------

function start() {
  readTheme();
  page.events.forEach((event) => find("events").append(make("option", {}, event.name)));
  find("count").textContent = page.events.length === 1 ? "1 event" : `${page.events.length} events`;
  find("summary").hidden = find("summary").children.length < 2;
  for (const [name, { title }] of Object.entries(VIEWS)) {
    const button = make("button", { title }, name);
    button.addEventListener("click", () => view(name));
    find("views").append(button);
  }
  for (const [value, text] of Object.entries(MODES)) {
    const button = make("button", { value }, text);
    button.addEventListener("click", () => setMode(value));
    find("modes").append(button);
  }
  find("events").addEventListener("change", (event) => setEvent(event.target.selectedIndex));
  find("previous").addEventListener("click", () => setEvent(state.index - 1));
  find("next").addEventListener("click", () => setEvent(state.index + 1));
  find("save").addEventListener("click", save);
  find("size").addEventListener("input", (event) => {
    state.size = Number(event.target.value);
    refill();
  });
  find("by-energy").addEventListener("change", (event) => {
    state.byEnergy = event.target.checked;
    refill();
  });
  listenToLists();
  addEventListener("keydown", onKey);
  addEventListener("hashchange", followLink);
  dark.addEventListener("change", () => {
    readTheme();
    showMotifs();
    showMode();
    refill();
  });
  new ResizeObserver(() => (aimed ? view(aimed) : invalidate())).observe(stage);
  find("space").addEventListener("webglcontextrestored", invalidate);
  followLink();
  view("3D");
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input[type=range]")) return;
  const modes = Object.keys(MODES);
  const actions = {
    ArrowLeft: () => setEvent(state.index - 1),
    ArrowRight: () => setEvent(state.index + 1),
    r: () => view("3D"),
    f: () => view("Fit"),
    s: save,
    t: toggleTable,
    Escape: () => light({ pointed: null, pinned: null }),
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const chosen = modes[Number(event.key) - 1];
  if (action) action();
  else if (chosen && available(chosen)) setMode(chosen);
  else return;
  event.preventDefault();
}

start();

/** What a test, or a physicist in the console, may ask. Panels: truth (or charge), prediction. */
globalThis.larpanda = {
  get ready() {
    return ready;
  },
  cameras: () => panels.map(({ controls: { object, target } }) => [...object.position, ...object.quaternion, object.zoom, ...target]),
  drawn: () => (flush(), panels.map((panel) => panel.drawn)),
  /** How many of them are not in the background. */
  lit() {
    const tints = panels.map(({ points }) => points?.geometry.attributes.tint.array ?? []);
    return tints.map((tint) => tint.filter((byte, k) => k % 4 === 3 && byte).length);
  },
  event: () => state.index,
  setEvent,
  /** Where the point of a row is on the page in panel 0 or 1, in pixels from its corner. */
  project(number, row) {
    flush();
    const i = current.columns.row.indexOf(row);
    const { x, y } = projector(panels[number])(...placeOf(i));
    const { left, top } = stage.getBoundingClientRect();
    return [x + left, y + top];
  },
};
