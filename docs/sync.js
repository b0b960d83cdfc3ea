// A copy of one user's tasks in the browser, to read and write without a network. sync.md explains it.
// A change is what will be sent for one task: {key, fields} makes a new one, {id, updated_at, fields}
// edits one, and fields: null deletes it. A ref is the task's id or, as long as it has none, its key.
const refOf = (change) => change.key ?? change.id;
const entry = ({ fields, ...task }) => ({ ...task, ...fields });
const add = (before, after) => after && { ...before, ...after };
const holds = (task, fields) =>
  ["title", "description", "status"].every((name) => !(name in fields) || task[name] === fields[name]);
const empty = () => ({ cursor: null, tasks: new Map(), ids: new Map(), changes: new Map(), sent: [], refused: [] });
const database = new Promise((resolve, reject) => { // localStorage has no transactions between tabs
  const request = indexedDB.open("todo-service", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("copies");
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

function outgoing({ changes, sent }) { // what waits for its answer, as it was; else the next changes
  let bytes = 0;
  for (const [ref, change] of sent.length ? [] : changes) {
    bytes += new Blob([JSON.stringify(change)]).size;
    if (sent.length === 100 || (sent.length && bytes > 1_000_000)) break;
    changes.delete(ref);
    if (change.id || change.fields) sent.push(change); // not what was made and deleted meanwhile
  }
  return sent.sort((a, b) => !a.fields - !b.fields); // deletions last, like their results
}

function settle(copy, change, { status, error, task }) {
  const later = copy.changes.get(refOf(change)); // made while this one was on its way
  copy.changes.delete(refOf(change));
  const both = later ? { ...change, fields: add(change.fields, later.fields) } : change;
  if (!status) return copy.changes.set(refOf(both), both); // not done, for the fault of another
  const seen = { ...copy.tasks.get(change.id), ...change.fields };
  if (task) copy.tasks.set(task.id, task);
  else if (status === 204 || status === 404) copy.tasks.delete(change.id);
  // Where all is as it was to be, it was done by a push whose answer was lost.
  const done = status < 300 || (change.fields ? status === 412 && holds(task, change.fields) : status === 404);
  if (!done) return copy.refused.push({ ...both, status, error, task });
  if (change.key) copy.ids.set(change.key, task.id);
  // If the task holds more than was seen here, somebody else changed it: the later change is to be a 412.
  const version = () => change.key ? task.created_at : holds(task, seen) ? task.updated_at : change.updated_at;
  if (later) copy.changes.set(task.id, { id: task.id, updated_at: version(), fields: later.fields });
}

export function openCopy({ service, userId, token, onRefused }) {
  const url = `${service}/api/${encodeURIComponent(userId)}/tasks/changes`;
  async function transact(mode, work) {
    const store = (await database).transaction("copies", mode, { durability: "strict" }).objectStore("copies");
    return new Promise((resolve, reject) => {
      store.transaction.onabort = () => reject(store.transaction.error);
      store.get(url).onsuccess = ({ target: { result: copy = empty() } }) => {
        const result = work(copy);
        if (mode === "readwrite") store.put(copy, url);
        store.transaction.oncomplete = () => resolve(result);
      };
    });
  }
  const read = (work) => transact("readonly", work), update = (work) => transact("readwrite", work);
  async function call(method, query, body) {
    const headers = { Authorization: `Bearer ${await token()}`, "Content-Type": "application/json" };
    const signal = AbortSignal.timeout(60_000); // other tabs wait for this one
    const response = await fetch(url + query, { method, headers, signal, body: body && JSON.stringify(body) });
    const answer = await response.json(), expected = body ? [400, 413] : query ? [410] : [];
    if (response.ok || expected.includes(response.status)) return { status: response.status, ...answer };
    throw new Error(`${response.status}: ${answer.error}`);
  }
  async function push() {
    for (let sent; (sent = await update(outgoing)).length; ) {
      const tasks = sent.filter((change) => change.fields), deleted = sent.slice(tasks.length);
      const answer = await call("POST", "", { tasks: tasks.map(entry), deleted: deleted.map(entry) });
      // A 400 names each faulty entry ("Task 3: Title is required"); a 413 is for one that is alone.
      const names = [...tasks.map((_, n) => `Task ${n}`), ...deleted.map((_, n) => `Deleted ${n}`)];
      const faulty = answer.error?.match(/(Task|Deleted) \d+(?=: )/g) ?? names.slice(0, 1);
      const refusal = (name) => (faulty.includes(name) ? answer : {});
      const results = answer.error ? names.map(refusal) : [...answer.tasks, ...answer.deleted];
      await update((copy) => copy.sent.splice(0).forEach((change, n) => settle(copy, change, results[n])));
    }
  }
  async function pull() {
    let cursor = await read((copy) => copy.cursor), more = true, anew = null;
    while (more) {
      const answer = await call("GET", cursor ? `?cursor=${encodeURIComponent(cursor)}` : "");
      if (answer.status === 410) [cursor, anew] = [null, new Map()];
      else await update((copy) => {
        const tasks = anew ?? copy.tasks; // the old ones are shown until the new ones are complete
        for (const task of answer.tasks) tasks.set(task.id, task);
        for (const id of answer.deleted) tasks.delete(id);
        ({ cursor, more } = answer);
        if (!anew || !more) Object.assign(copy, { tasks, cursor });
      });
    }
  }
  const change = (ref, fields) => update(({ ids, tasks, changes, sent }) => { // false: no such task
    ref = ids.get(ref) ?? ref;
    const task = tasks.has(ref) && { id: ref, updated_at: tasks.get(ref).updated_at, fields: {} };
    const last = changes.get(ref) ?? sent.find((change) => refOf(change) === ref) ?? task;
    if (last.fields) changes.set(ref, { ...last, fields: add(changes.get(ref)?.fields, fields) });
    return Boolean(last.fields);
  });
  return {
    create: ({ title, description = null, status = "incomplete" }, key = crypto.randomUUID()) =>
      update(({ changes }) => changes.set(key, { key, fields: { title, description, status } }) && key),
    edit: change,
    complete: (ref) => change(ref, { status: "complete" }), remove: (ref) => change(ref, null),
    list: () => read(({ tasks, sent, changes }) => {
      for (const { key, id, fields } of [...sent, ...changes.values()]) {
        if (!fields) tasks.delete(key ?? id);
        else if (key || tasks.has(id)) tasks.set(key ?? id, { key, ...tasks.get(key ?? id), ...fields });
      }
      return [...tasks.values()].reverse().sort((a, b) => (b.id ?? Infinity) - (a.id ?? Infinity) || 0);
    }),
    sync: () => navigator.locks.request(url, async () => {
      await push();
      await pull();
      const refused = await read((copy) => copy.refused);
      if (refused.length) await onRefused(refused);
      if (refused.length) await update((copy) => copy.refused.splice(0, refused.length));
    }),
  };
}
