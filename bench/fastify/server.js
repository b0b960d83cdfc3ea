// The measured routes beyond Python: Fastify and node-postgres on two processes, with the
// statements of sql/queries/. As the documentation of both teaches: schemas for what comes in and
// goes out, prepared statements, a memory of verified tokens, one line to the log for each request.

import cluster from "node:cluster";
import { readFileSync } from "node:fs";

import { createVerifier } from "fast-jwt";
import Fastify from "fastify";
import pg from "pg";

const statements = Object.fromEntries(
  ["create_task", "get_task", "list_tasks", "update_task"].map((name) => {
    const file = new URL(`../../sql/queries/${name}.sql`, import.meta.url);
    let number = 0;
    const text = readFileSync(file, "utf8").replace(/%s/g, () => `$${++number}`);
    return [name, { name, text }];
  }),
);

if (cluster.isPrimary) {
  for (let worker = 0; worker < Number(process.env.WEB_CONCURRENCY); worker++) cluster.fork();
} else {
  await serve();
}

async function serve() {
  // Ids are far below 2^53. Times keep their microseconds, which a Date would lose.
  pg.types.setTypeParser(pg.types.builtins.INT8, Number);
  pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) =>
    text.replace(" ", "T").replace(/\+00$/, "Z"),
  );
  const pool = new pg.Pool({
    connectionString: process.env.DATABASE_URL,
    options: "-c TimeZone=UTC",
    max: 16,
  });
  const verify = createVerifier({
    key: process.env.JWT_SECRET,
    algorithms: ["HS256"],
    requiredClaims: ["exp", "sub"],
    clockTolerance: 30_000,
    cache: 4096,
  });

  const app = Fastify({ logger: true, disableRequestLogging: true });

  app.addHook("onRequest", async (request, reply) => {
    if (request.url === "/health") return;
    const [scheme, token] = (request.headers.authorization ?? "").split(" ");
    let claims;
    try {
      if (scheme !== "Bearer") throw new Error("no bearer token");
      claims = verify(token);
    } catch {
      return reply.code(401).send({ error: "Unauthorized" });
    }
    if (claims.sub !== request.params.user_id) return reply.code(403).send({ error: "Forbidden" });
  });

  app.addHook("onResponse", async (request, reply) => {
    request.log.info({
      method: request.method,
      route: request.routeOptions.url,
      status: reply.statusCode,
      ms: reply.elapsedTime,
      user: request.params.user_id,
    });
  });

  const text = { type: "string" };
  const task = {
    type: "object",
    properties: {
      id: { type: "integer" },
      user_id: text,
      title: text,
      description: { type: "string", nullable: true },
      status: text,
      created_at: text,
      updated_at: text,
    },
  };
  const fields = {
    title: { type: "string", minLength: 1, maxLength: 255 },
    description: { type: "string", nullable: true, maxLength: 5000 },
    status: { enum: ["incomplete", "complete"] },
  };
  const newTask = { type: "object", properties: fields, required: ["title"] };
  const changes = { type: "object", properties: fields, minProperties: 1 };
  const page = { type: "object", properties: { limit: { type: "integer", minimum: 1 } } };

  const run = async (name, values) => (await pool.query({ ...statements[name], values })).rows;
  const oneOr404 = (rows, reply) => rows[0] ?? reply.code(404).send({ error: "Task not found" });

  app.get("/health", async () => ({ status: "ok" }));

  app.get(
    "/api/:user_id/tasks",
    { schema: { querystring: page, response: { 200: { type: "array", items: task } } } },
    async (request) => {
      const owner = request.params.user_id;
      const rows = await run("list_tasks", [owner, owner, "infinity", 0, request.query.limit, 2 ** 20]);
      return rows.slice(1); // the first is the owner's clock
    },
  );

  app.post(
    "/api/:user_id/tasks",
    { schema: { body: newTask, response: { 201: task } } },
    async (request, reply) => {
      const owner = request.params.user_id;
      const { title, description = null, status = "incomplete" } = request.body;
      const rows = await run("create_task", [owner, owner, title, description, status, null, null]);
      reply.code(201);
      return rows[0];
    },
  );

  app.get(
    "/api/:user_id/tasks/:id",
    { schema: { response: { 200: task } } },
    async (request, reply) =>
      oneOr404(await run("get_task", [request.params.user_id, request.params.id]), reply),
  );

  // Not measured here, and not the id of a task.
  app.get("/api/:user_id/tasks/changes", (_, reply) => oneOr404([], reply));

  const update = async (request, reply, { title, description, status }) => {
    const owner = request.params.user_id;
    const set = [owner, title, description !== undefined, description, status];
    const which = [owner, request.params.id, null, null, null];
    return oneOr404(await run("update_task", [...set, ...which]), reply);
  };

  app.put(
    "/api/:user_id/tasks/:id",
    { schema: { body: changes, response: { 200: task } } },
    (request, reply) => update(request, reply, request.body),
  );

  app.patch(
    "/api/:user_id/tasks/:id/complete",
    { schema: { response: { 200: task } } },
    (request, reply) => update(request, reply, { status: "complete" }),
  );

  await app.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
}
