-- Sends the requests of a file in turn. A line of it is method, path, token, another
-- header and body, between tabs.

local requests, count, last = {}, 0, 0

function init(args)
   for line in io.lines(args[1]) do
      local method, path, token, header, body = line:match("^(.-)\t(.-)\t(.-)\t(.-)\t(.*)$")
      local headers = { ["Authorization"] = "Bearer " .. token }
      local name, value = header:match("^(.-): (.*)$")
      if name then
         headers[name] = value
      end
      if body == "" then
         body = nil
      else
         headers["Content-Type"] = "application/json"
      end
      count = count + 1
      requests[count] = wrk.format(method, path, headers, body)
   end
end

function request()
   last = last % count + 1
   return requests[last]
end

-- wrk counts no redirects, but no competitor sends any: verify.py looks at the codes themselves.
function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, '
         .. '"bad_status": %d, "socket_errors": %d}\n',
      summary.requests,
      summary.duration / 1e6,
      latency:percentile(50) / 1e3,
      latency:percentile(99) / 1e3,
      errors.status,
      errors.connect + errors.read + errors.write + errors.timeout
   ))
end
