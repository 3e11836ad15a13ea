# A Rails application in one file: the frameworks of an ordinary one, a catalogue in memory, a counter for all workers.
require "rails"
require "action_controller/railtie"
require "action_view/railtie"
require "active_model/railtie"
require "active_job/railtie"
require "digest"

# The number of requests, for all workers: it lies in a pipe that they inherit. Who takes it out holds it until it is put back.
class Counter
  def initialize
    @reader, @writer = IO.pipe
    @writer.syswrite([0].pack("Q"))
  end

  def add
    count = @reader.readpartial(8).unpack1("Q") + 1
    @writer.syswrite([count].pack("Q"))
    count
  end
end

class Item
  include ActiveModel::Model
  attr_accessor :number, :name, :price, :text
end

WORDS = "wood frog freezes solid in winter and hops away when it thaws".split
COUNTER = Counter.new
ITEMS = Array.new(Integer(ENV.fetch("ITEMS", "60000"))) do |number|
  word = WORDS[number % WORDS.size]
  Item.new(number:, name: "#{word} #{number}", price: number * 1.25, text: "#{word}#{number} " * 20)
end

class Shop < Rails::Application
  config.load_defaults 7.2
  config.root = __dir__
  config.eager_load = true
  config.consider_all_requests_local = false
  config.secret_key_base = "only for tests"
  config.logger = ActiveSupport::Logger.new($stdout)
  config.log_level = :info
  config.hosts.clear
end

class PagesController < ActionController::Base
  PAGE = <<~HTML.freeze
    <!doctype html><title>Catalogue</title><h1><%= number_with_delimiter ITEMS.size %> items</h1>
    <table><% ITEMS.first(50).each do |item| %><tr><td><%= item.number %><td><%= item.name %><td><%= number_to_currency item.price %><% end %></table>
  HTML

  def index = render(inline: PAGE)

  def count = render(plain: "#{COUNTER.add}\n")

  def checksum
    hash = Digest::SHA256.new
    ITEMS.each { |item| hash << item.number.to_s << item.name << item.price.to_s << item.text }
    render plain: "#{hash.hexdigest}\n"
  end

  # Tells all workers.
  def collect
    workers = File.read("/proc/#{Process.ppid}/task/#{Process.ppid}/children").split
    workers.each { |worker| Process.kill(:URG, Integer(worker)) }
    render plain: "#{workers.size}\n"
  end
end

Shop.initialize!
Shop.routes.draw do
  root to: "pages#index"
  get "/count", to: "pages#count"
  get "/checksum", to: "pages#checksum"
  get "/collect", to: "pages#collect"
end
