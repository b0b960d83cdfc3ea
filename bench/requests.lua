-- Sends the requests of a file in turn. Each is as HTTP has it, and a NUL follows.

local requests, last = {}, 0

function init(args)
   for one in io.open(args[1]):read("*a"):gmatch("%Z+") do
      requests[#requests + 1] = one
   end
end

function request()
   last = last % #requests + 1
   return requests[last]
end

-- wrk counts no redirects, but no competitor sends any: load.py looks at the statuses themselves.
function done(summary)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %f, "errors": %d}\n',
      summary.requests, summary.duration / 1e6,
      errors.status + errors.connect + errors.read + errors.write + errors.timeout
   ))
end
